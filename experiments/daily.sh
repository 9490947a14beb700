#!/bin/bash
# One day of a ranking model's life: yesterday's model meets the log of a day, is measured on it,
# learns from it, and is replaced in TF Serving's directory. Copy it and make it yours.
#
#   experiments/daily.sh 2022-05-03
#
# The same command again goes on after whatever has stopped it, and does nothing where a day is done.
# The first day of all trains a model from nothing on what the log has until its end. A later one
# takes all days since the newest model, so that none is lost if one was left out.
#
# $DAILY/data/DAY      the day's requests, with yesterday's vocabularies and the day's new values
# $DAILY/runs/DAY      the model of the day: a run directory, as `train` leaves it
# $DAILY/reports/DAY   yesterday's model on the day, before it has learned from it
# $DAILY/serving/N     what TF Serving serves; N is the day, as 20220503
# $DAILY/current       the day of the newest model that is served
set -Eeuo pipefail

DAY=$(date -u -d "${1:?the day, as 2022-05-03}" +%F)
: "${DAILY:=daily}" "${RAW:=raw/kuairand}" "${SPEC:=experiments/kuairand.json}"
: "${FLAGS:=experiments/kuairand.flags}" "${FORGET:=30}"
NEXT=$(date -u -d "$DAY + 1 day" +%F)
NAME=logs/$(basename "$SPEC" .json)
NUMBER=${DAY//-/}

STEP="start"
trap 'echo "daily.sh: $DAY failed at: $STEP; the same command goes on from there" >&2' ERR
run() { STEP="$*"; echo "== $*"; python -m "tfrec_diffusion.$@"; }

mkdir -p "$DAILY/reports" "$DAILY/serving"
LAST=$(cat "$DAILY/current" 2>/dev/null || true)
if [[ $LAST && ! $LAST < $DAY ]]; then
  echo "daily.sh: $DAY is done; the newest model is of $LAST"
  exit 0
fi

DATA=(--data_dir="$DAILY/data/$DAY")
SPLITS=(--set=spec="$SPEC" --set=train_until="$NEXT" --set=test_until="$NEXT")
TRAIN=(--flagfile="$FLAGS" --dataset="$NAME" "${DATA[@]}" --model_dir="$DAILY/runs/$DAY")
if [[ $LAST ]]; then
  run prepare --dataset=logs --raw_dir="$RAW" "${DATA[@]}" "${SPLITS[@]}" \
    --set=train_from="$(date -u -d "$LAST + 1 day" +%F)" --like="$DAILY/runs/$LAST" --grow --forget="$FORGET"
  run evaluate --model_dir="$DAILY/runs/$LAST" "${DATA[@]}" --split=train > "$DAILY/reports/$DAY"
  tail -1 "$DAILY/reports/$DAY"
  run train "${TRAIN[@]}" --warm_start="$DAILY/runs/$LAST"
else
  run prepare --dataset=logs --raw_dir="$RAW" "${DATA[@]}" "${SPLITS[@]}"
  run train "${TRAIN[@]}"
fi
if [[ ! -d $DAILY/serving/$NUMBER ]]; then
  run export --model_dir="$DAILY/runs/$DAY" --export_dir="$DAILY/serving" --version="$NUMBER"
fi
STEP="switch"
echo "$DAY" > "$DAILY/current.new"
mv "$DAILY/current.new" "$DAILY/current"
echo "daily.sh: $DAY is done; $DAILY/serving/$NUMBER is served"
