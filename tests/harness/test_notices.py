from __future__ import annotations

import logging

import pytest

from aft_harness.harness.notices import without_notices


def test_lm_eval_logs_errors_only_inside_the_block(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("lm_eval.models")
    with caplog.at_level(logging.INFO, "lm_eval"):
        with without_notices():
            logger.warning("a notice")
            logger.error("an error")
        logger.warning("after it")
        assert logging.getLogger("lm_eval").level == logging.INFO
    assert "a notice" not in caplog.text and "an error" in caplog.text and "after it" in caplog.text
