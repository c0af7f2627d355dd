#!/bin/sh
# Runs everything that docs/experiments.md reports: SmolLM2-135M-Instruct on ARC-Easy in its cloze form.
#
#     sh scripts/experiments.sh FOLDER
#
# Boosters learn from ARC-Easy's training split, of which 90 documents are set aside to choose by; results are on test
# rows 400-1187 (rows 0-399 were looked at while the tool was made). An hour and a half on two CPU cores. What is done is
# kept in FOLDER, and the same command goes on from there; the tables go to leaderboards/experiments.
set -eu

out=${1:?name a folder for boosters and results}
tables=$(dirname "$0")/../leaderboards/experiments
mkdir -p "$out" "$tables"
model=$(aft demo-model)
on="--model $model --dtype bfloat16 --tasks arc_easy"
dev="--dev-docs 90"
# One vector at one layer, trained as it was before the defaults became a recipe of their own.
plain="--objective choice --rate-unit absolute --schedule constant --temperature 1"
test="--test-docs 400:1188"

once() { # FILE COMMAND...: runs the command unless its file is there
    file=$1
    shift
    [ -e "$file" ] || { echo "\$ $*" | sed "s#$model#MODEL#g" && "$@"; }
}

sweep() { # NAME COMMAND...: a sweep, and its table
    name=$1
    shift
    once "$out/$name/sweep.csv" aft sweep "$@" --output "$out/$name"
    cp "$out/$name/sweep.csv" "$tables/$name.csv"
    cp "$out/$name/sweep.png" "$tables/$name.png"
}

# Which layer? The same short training at every one of them.
sweep layers layers $on $dev $test $plain --layers all --limit 200 --epochs 2 --lr 5e-2
layer=$(python - "$tables/layers.csv" <<'PYTHON'
import sys, pandas
table = pandas.read_csv(sys.argv[1])
print(int(table[table["chosen"] == 1]["layers"].iloc[0]))
PYTHON
)
echo "layer $layer, chosen on development documents"

# AFT at that layer, three seeds; the contextual booster from the same documents, its rate chosen on development documents.
long="$dev $plain --limit 500 --epochs 3 --layer $layer"
for seed in 0 1 2; do
    once "$out/aft-$seed.safetensors" aft train $on $long --lr 5e-2 --seed $seed --output "$out/aft-$seed.safetensors"
done
for rate in 1e-3 3e-3 1e-2; do
    once "$out/contextual-$rate.safetensors" aft train $on $long --kind contextual --rank 8 --lr $rate \
        --output "$out/contextual-$rate.safetensors"
done
contextual=$(python - "$out"/contextual-*.safetensors <<'PYTHON'
import sys
from aft_harness.boosters.booster import Booster
print(min(sys.argv[1:], key=lambda path: Booster.load(path).provenance["after"]["loss"]))
PYTHON
)
echo "$contextual, chosen on development documents"
once "$out/seeds.csv" aft evaluate $on --docs 400:1188 --csv "$out/seeds.csv" --output "$out/seeds" \
    --vector "$out/aft-0.safetensors" --vector "$out/aft-1.safetensors" --vector "$out/aft-2.safetensors" \
    --vector "$contextual"
cp "$out/seeds.csv" "$tables/seeds.csv"
# The contextual booster against the static one of the same seed, document by document.
for metric in acc acc_norm; do
    aft compare "$out/seeds/variant1" "$out/seeds/variant4" --task arc_easy --metric $metric
done | tee "$tables/static-contextual.txt"

# Is 1.0 the best strength?
sweep strengths strengths $on $dev $test --vector "$out/aft-0.safetensors" --strengths 0.25,0.5,0.75,1,1.25,1.5,2,3

# The heuristics, at their published layers and strengths.
once "$out/mean.safetensors" aft extract mean-difference $on $dev --limit 500 --output "$out/mean.safetensors"
sweep mean-difference strengths $on $dev $test --vector "$out/mean.safetensors" \
    --strengths 0,0.1,0.2,0.3,0.5,0.7,1,1.5,2
once "$out/function.safetensors" aft extract function-vector --model "$model" --dtype bfloat16 \
    --output "$out/function.safetensors"
sweep function-vector strengths $on $dev $test --vector "$out/function.safetensors" --strengths 0.5,1,1.5,2,3

# Two boosters and their mixture, on both of their tasks.
suite="--include-path $(aft tasks)"
once "$out/gsm8k.safetensors" aft train --model "$model" --dtype bfloat16 --tasks gsm8k_easy $suite --dev-docs 90 \
    --limit 500 --epochs 3 --layer "$layer" $plain --lr 1e-1 --output "$out/gsm8k.safetensors"
once "$out/mix.safetensors" aft mix "$out/aft-0.safetensors" "$out/gsm8k.safetensors" -o "$out/mix.safetensors"
for task in arc_easy gsm8k_easy; do
    rows=0:500
    [ $task = arc_easy ] && rows=400:1188
    once "$out/mix-$task.csv" aft evaluate --model "$model" --dtype bfloat16 --tasks $task $suite --docs $rows \
        --csv "$out/mix-$task.csv" --vector "$out/aft-0.safetensors" --vector "$out/gsm8k.safetensors" \
        --vector "$out/mix.safetensors"
    cp "$out/mix-$task.csv" "$tables/mix-$task.csv"
done
