#!/usr/bin/env bash
# Train one of the quickstart's models: bash examples/quickstart/train.sh MODEL [WORK], MODEL one of
#   ar    fairseq's transformer, the teacher
# and, on the data of distill.sh and from the teacher's weights (minutes instead of an hour),
#   cmlm  Mask-Predict, with fairseq's layers, as the teacher has
#   nat   NAT with fertilities, positional attention and diagonal mask
#   ctc   vanilla NAT with latent alignments and glancing
#   dag   a directed acyclic graph of four vertices a source token, with glancing
#   bang  BANG, from random weights: one checkpoint for autoregressive, parallel and mixed decoding. It is first trained
#         autoregressively (bang-ar): trained from scratch, the full objective ignores the source for a long time
#   blockwise  the frozen teacher with four proposal heads; only the heads are trained, the greedy output is the teacher's
# Small batches and a learning rate that decays to zero: with so few updates they gain ten BLEU over the papers' settings.
# A second run continues where the first one stopped, and does nothing when it was done.
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
names="ar, cmlm, nat, ctc, dag, bang or blockwise"
model=${1:?$names}
work=${2:-$root/work/quickstart}

sizes=("${small[@]}" --encoder-layers 2 --decoder-layers 2 --share-all-embeddings --dropout 0.1)
teacher=$work/ar/checkpoint_last.pt
taught=(--criterion nar_loss --init-encoder-from "$teacher" --init-decoder-from "$teacher")
smooth=(--label-smoothing 0.1)
bang=(--arch bang --max-source-positions 256 --max-target-positions 256 --criterion bang_loss)
data=$work/kd tokens=1536
case $model in
    ar) what=(--arch transformer --criterion label_smoothed_cross_entropy "${smooth[@]}"); updates=600; data=$work/bin ;;
    cmlm) what=(--arch cmlm "${taught[@]}"); updates=6000 ;;  # unsmoothed: how sure it is decides what it commits
    nat) what=(--arch nat --positional-attention --mask-diagonal "${taught[@]}" "${smooth[@]}"); updates=500 ;;
    ctc) updates=1700 tokens=1024; what=(--arch nat --ctc --upsample 2 --glancing "0.5:0.3@$updates" "${taught[@]}") ;;
    dag) updates=1500 tokens=1024; what=(--arch dag --upsample 4 --source-copy uniform --glancing "0.5:0.1@1000" "${taught[@]}") ;;
    blockwise) what=(--arch blockwise --block-size 4 --block-head sequential --freeze-base --finetune-from-model "$teacher"
                     --criterion blockwise_loss --block-loss weighted --block-positions 0.5); updates=300 ;;
    bang-ar) what=("${bang[@]}" --ngram 1); updates=700 ;;
    bang) what=("${bang[@]}" --bang-rows sample:2 --finetune-from-model "$work/bang-ar/checkpoint_last.pt"); updates=800 ;;
    *) fail "no model '$model': $names" ;;
esac
[ "$model" = ar ] || [ -e "$teacher" ] || fail "$model needs the teacher $teacher: train ar first"
if [ -e "$work/$model/done" ]; then echo "$model: trained already"; exit 0; fi
if [ "$model" = bang ]; then bash "$0" bang-ar "$work"; fi
if [ "$model" = nat ] && [ ! -e "$data/test.en-de.fert" ]; then "$bin/nar-align" "$data"; fi
"$bin/fairseq-train" "$data" --user-dir "$root/nar_plugins" --task nar_translation \
    "${what[@]}" "${sizes[@]}" --train-dtype auto \
    --optimizer adam --adam-betas "(0.9, 0.98)" --clip-norm 5 \
    --lr 2e-3 --lr-scheduler polynomial_decay --warmup-updates 100 --total-num-update "$updates" \
    --max-tokens $tokens --max-update "$updates" --seed 1 $device \
    --save-dir "$work/$model" --save-interval 3 --validate-interval 3 --no-epoch-checkpoints \
    --no-progress-bar --log-interval 50
touch "$work/$model/done"
