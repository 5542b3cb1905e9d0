#!/usr/bin/env bash
# Trains, predicts and evaluates with one command. Slides and labels are in DATA/{train,val}/{images,annotations}; the
# labels are ASAP XML. Results are in OUT/{training,predictions,evaluation}.
#
#   experiments/end_to_end.sh DATA OUT [OPTION OF train.py ...]
#
# A second call resumes. NP=N: number of ranks, for training and prediction.

# `sh FILE` is another shell on most machines.
if [ -z "${BASH_VERSION:-}" ] || [ -o posix ]; then exec env -u POSIXLY_CORRECT -u SHELLOPTS bash "$0" "$@"; fi

set -euo pipefail
if (($# < 2)) || [[ $1 == -* ]]; then
    sed -n '2,/^$/ s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
    exit 2
fi
root=$(cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/.." && pwd -P)
data=$1 out=$2
shift 2

"$root/run_train.sh" --slide_path "$data/train/images" --label_path "$data/train/annotations" --label_format xml \
    --valid_slide_path "$data/val/images" --valid_label_path "$data/val/annotations" \
    --log_dir "$out/training" --resume auto "$@"
SCRIPT=$root/predict.py "$root/run_train.sh" --model "$out/training" --slide_path "$data/val/images" \
    --out "$out/predictions"
NP=1 LAUNCHER=none SCRIPT=$root/evaluate.py "$root/run_train.sh" --predictions "$out/predictions" \
    --label_path "$data/val/annotations" --label_format xml --out "$out/evaluation"
