#!/usr/bin/env bash
# WMT14 English-German, binarised: bash examples/wmt14_en_de/prepare.sh [FOLDER] [WORK] [--dry-run]
# The training text of Vaswani et al. 2017 (section 5.1), 4,520,620 pairs: Europarl v7, Common Crawl, News Commentary v9, a
# download of 1.7 GB. Validation: newstest2013. Test: all 3,003 lines of newstest2014. FOLDER (or RAW=FOLDER) holds
# {train,valid,test}.{en,de}, plain, .gz or .xz, or the three archives of the training text. More variables: ../recipe.sh.
. "$(dirname "${BASH_SOURCE[0]}")/../recipe.sh"
recipe wmt14_en_de en de bpe "${2:-}"
folder=${1:-${RAW:-}}
if prepared; then exit 0; fi
corpora=$(cat <<'LIST'
1920209 - https://www.statmt.org/wmt13/training-parallel-europarl-v7.tgz training/europarl-v7.de-en
2399123 - https://www.statmt.org/wmt13/training-parallel-commoncrawl.tgz commoncrawl.de-en
201288 - https://www.statmt.org/wmt14/training-parallel-nc-v9.tgz training/news-commentary-v9.de-en
LIST
)
if [ -n "$mini" ]; then
    mini_text
else
    training_text "$folder" "$corpora"
    evaluation_text "$folder" valid wmt13 3000
    evaluation_text "$folder" test wmt14/full 3003
fi
# 40,000 merges, pairs of at most 250 pieces and 1.5 times each other's: fairseq's recipe (Vaswani et al.: 37,000 pieces)
prepare_pieces 40000 250 1.5 --normalise --split-hyphens
