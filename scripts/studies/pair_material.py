"""The two bundled sets of pairs: what they are made of, and how.

    python scripts/studies/pair_material.py        # writes tasks/pairs/concise.jsonl and formal.jsonl anew

Questions and answers are those of `concise.jsonl`, where they were written by hand. Everything around an answer is
drawn from the sentences here by a fixed seed, so that a pair's two texts say the same.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "tasks" / "pairs"
CONCISE, FORMAL = FOLDER / "concise.jsonl", FOLDER / "formal.jsonl"

GREETING = (
    "What a wonderful question!",
    "Thank you so much for asking this!",
    "That is a really great question, and I am glad that you brought it up.",
    "Of course! I would be more than happy to help you with that.",
    "Sure, I can certainly help you with this question.",
    "This is something that a lot of people wonder about.",
    "I completely understand why you would want to know this.",
    "Certainly! Let me walk you through this step by step.",
    "Ah, an excellent and very thoughtful question indeed!",
    "I appreciate your curiosity about this fascinating topic.",
    "It is always nice to get a question like this one.",
    "Absolutely! There is quite a lot to say about this.",
)
PREFACE = (
    "Before I answer, it is worth keeping in mind that there are many ways to look at this.",
    "To begin with, let us take a moment to think about what is really being asked here.",
    "There are, as you may know, many aspects to consider when it comes to this subject.",
    "As with so many things in life, the answer is both simple and interesting.",
    "In order to give you the best possible answer, I will try to explain it clearly.",
    "This is a topic that has interested people for a very long time.",
    "Generally speaking, and with all due care, the following can be said.",
    "Let me share with you what is commonly known about this matter.",
    "When we look at this more closely, it turns out to be quite interesting.",
    "",
)
TRANSITION = (
    "In short: ",
    "Basically, what it comes down to is this: ",
    "The answer to your question is as follows. ",
    "To put it simply, as far as this is concerned: ",
    "So, with all of that said, here it is. ",
    "Put in other words, the important thing to know is this. ",
    "With that in mind, here is the answer. ",
    "",
)
FAREWELL = (
    "I hope that this answers your question! Please do not hesitate to ask if there is anything else.",
    "If you have any further questions about this or any other topic, feel free to let me know!",
    "As you can see, there is more to this than one might think at first.",
    "It is always a good idea to look into this further if you would like to learn more.",
    "I hope this was helpful, and I wish you a wonderful day!",
    "Let me know if you would like me to explain any part of this in more detail.",
    "In conclusion, that is really the most important thing to remember about this topic.",
    "Of course, there is always more to learn, and I encourage you to keep exploring!",
    "Thank you again for your question, and I am always here to help.",
    "Overall, this is a good example of how interesting the world around us can be.",
)
CASUAL_START = (
    "Oh yeah, easy one!",
    "Haha, good one!",
    "Hey, so here's the deal:",
    "Ooh, I know this one!",
    "Yeah, so, basically:",
    "Okay cool, so check this out:",
    "Heh, funny you ask!",
    "Alright buddy, here goes:",
    "Sure thing, pal!",
    "Hmm, lemme think... yep!",
)
CASUAL_END = (
    "Pretty cool, huh?",
    "No biggie!",
    "Wild, right?",
    "That's it, folks!",
    "Yep, that's pretty much it.",
    "Kinda neat, isn't it?",
    "Hope that helps, buddy!",
    "So yeah, there you go!",
    "Easy peasy!",
    "Catch you later!",
)
FORMAL_START = (
    "With regard to your enquiry, the following applies.",
    "The following information may be provided.",
    "In response to your question, I note the following.",
    "It should be stated that:",
    "According to established sources:",
    "The matter may be summarised as follows.",
    "For your information, please note the following.",
    "As is generally acknowledged:",
    "In this regard, the following holds.",
    "I am pleased to provide the following statement.",
)
FORMAL_END = (
    "I trust that this is satisfactory.",
    "This concludes my response.",
    "Further details are available upon request.",
    "I remain at your disposal.",
    "This corresponds to current knowledge.",
    "I hope that this is of assistance.",
    "No further remarks are necessary.",
    "Kindly let me know should you require more.",
    "Yours sincerely.",
    "The matter is thereby settled.",
)


def questions_and_answers() -> list[tuple[str, str]]:
    """The questions of the bundled pairs, and the answers to them in a sentence."""
    rows = [json.loads(line) for line in CONCISE.read_text(encoding="utf-8").splitlines()]
    return [(row["prompt"][0]["content"], row["chosen"][0]["content"]) for row in rows]


def concise(facts: Sequence[tuple[str, str]]) -> Iterator[tuple[str, str, str]]:
    """Question, the answer alone, and the answer with padding around it."""
    for question, answer in facts:
        drawn = random.Random(f"concise 1.0/{question}")
        parts = [drawn.choice(GREETING), drawn.choice(PREFACE), drawn.choice(TRANSITION) + answer]
        parts += drawn.sample(FAREWELL, drawn.choice([1, 1, 2]))
        yield question, answer, " ".join(part for part in parts if part)


def formal(facts: Sequence[tuple[str, str]]) -> Iterator[tuple[str, str, str]]:
    """Question, the answer in a formal manner, and the answer in a casual one."""
    for question, answer in facts:
        drawn = random.Random(f"formal 1.0/{question}")
        texts = [
            " ".join((drawn.choice(start), answer, drawn.choice(end)))
            for start, end in ((FORMAL_START, FORMAL_END), (CASUAL_START, CASUAL_END))
        ]
        yield question, texts[0], texts[1]


def as_lines(pairs: Iterator[tuple[str, str, str]]) -> str:
    """Pairs as JSON lines of chat messages."""
    lines = []
    for question, chosen, rejected in pairs:
        row = {"prompt": [{"role": "user", "content": question}]}
        row |= {"chosen": [{"role": "assistant", "content": chosen}]}
        row |= {"rejected": [{"role": "assistant", "content": rejected}]}
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    return "".join(lines)


def main() -> None:
    """Writes both files."""
    facts = questions_and_answers()
    CONCISE.write_text(as_lines(concise(facts)), encoding="utf-8")
    FORMAL.write_text(as_lines(formal(facts)), encoding="utf-8")


if __name__ == "__main__":
    main()
