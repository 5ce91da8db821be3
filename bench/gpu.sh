#!/usr/bin/env bash
# The benchmark on a machine with a GPU, without network and with little installed (torch, transformers, peft, accelerate).
#
#   bench/gpu.sh wheels DIR            here: what is missing there, in parts DIR/1, DIR/2, ... of at most LIMIT_MIB each
#   bench/gpu.sh install PART...       there: install parts into SITE, one by one or together
#   bench/gpu.sh piece OUT [WORDS]     there: measure for at most MINUTES and add to OUT/gpu.json; exit code 3: not all is done
#   bench/gpu.sh run OUT [WORDS]       there: piece after piece until all is done, each in a process of its own
#   bench/gpu.sh tests OUT             there: the tests that take a device, on CUDA, as `make test-gpu` runs them
#   bench/gpu.sh profile OUT [WORDS]   there: where the time of a step goes (python -m bench.gpu.profile WORDS)
#   bench/gpu.sh heads OUT             there: the output layer against fused kernels (python -m bench.heads)
#   bench/gpu.sh split FILES DIR       sort wheels into parts (a step of `wheels`)
#
# WORDS are options of `python -m bench`, e.g. --only mixed orpo,dpo 0.5b-32k. Parity comes first. A piece that is cut off loses
# the turn it was at; OUT/gpu.json has all others, and continues on any machine of the same kind. Variables, with their defaults:
#
#   PYTHON=python3  PYTHON_VERSION=3.12 (that of the other machine)  WITHOUT="" (packages it has, e.g. "pyarrow pandas")
#   LIMIT_MIB=54  SITE=/tmp/alignkit/site-packages  MINUTES=9  DEVICE=cuda  WORKERS=0 (processes of the tests; 0: this one)
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
PYTHON=${PYTHON:-python3}
PYTHON_VERSION=${PYTHON_VERSION:-3.12}
WITHOUT=${WITHOUT:-}
LIMIT_MIB=${LIMIT_MIB:-54}
SITE=${SITE:-/tmp/alignkit/site-packages}
MINUTES=${MINUTES:-9}
DEVICE=${DEVICE:-cuda}
WORKERS=${WORKERS:-0}

UNFINISHED=3

# Versions are those of constraints.txt, if it has one. pyarrow is by far the largest: it is first, and a part of its own.
PACKAGES=(
  pyarrow
  annotated-types click datasets dill filelock markdown-it-py mdurl multiprocess pandas pluggy psutil pydantic pydantic_core
  pygments python-dateutil pytz rich six trl typing_extensions typing-inspection xxhash
  execnet hypothesis iniconfig pytest pytest-timeout pytest-xdist sortedcontainers
  cut-cross-entropy==25.1.1 liger-kernel==0.8.5 prefix-grouper==0.0.1.post1
)

fail() {
  echo "bench/gpu.sh: $*" >&2
  exit 2
}

# dill, by which datasets hashes its tables, takes modules of any other directory for a user's own and pickles them whole.
case $SITE in *site-packages*) ;; *) fail "SITE must be a path with site-packages in it, not $SITE" ;; esac

usage() {
  sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}" >&2
  exit 2
}

pinned() { # NAME: with the version that is tested
  local found
  found=$(grep -i "^${1//_/[-_]}==" "$ROOT/constraints.txt" || true)
  echo "${found:-$1}"
}

wheels() { # DIR
  local directory=$1 files name platforms=() wanted=()
  mkdir -p "$directory"
  files=$(mktemp -d)
  # shellcheck disable=SC2064
  trap "rm -rf '$files'" EXIT
  for name in manylinux_2_28_x86_64 manylinux_2_27_x86_64 manylinux_2_17_x86_64 manylinux2014_x86_64 manylinux1_x86_64; do
    platforms+=(--platform "$name")
  done
  for name in "${PACKAGES[@]}"; do
    case " $WITHOUT " in *" ${name%%==*} "*) continue ;; esac
    wanted+=("$(pinned "$name")")
  done
  "$PYTHON" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --dest "$files" \
    --implementation cp --python-version "$PYTHON_VERSION" "${platforms[@]}" "${wanted[@]}" ||
    fail "a package has no wheel for Python $PYTHON_VERSION on x86-64 Linux (above)"
  "$PYTHON" -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir "$files" "$ROOT"
  split "$files" "$directory"
}

split() { # FILES DIR: pyarrow into DIR/1, the rest into DIR/1 too or DIR/2, DIR/3, ... as they fit
  local files=$1 directory=$2 part=1 used=0 limit=$((LIMIT_MIB * 1024 * 1024)) wheel size
  local ordered=()
  for wheel in "$files"/pyarrow-*.whl "$files"/*.whl; do
    [ -e "$wheel" ] || continue
    case " ${ordered[*]:-} " in *" $wheel "*) ;; *) ordered+=("$wheel") ;; esac
  done
  [ ${#ordered[@]} -gt 0 ] || fail "$files has no wheels"
  rm -rf "${directory:?}"/[0-9]*
  for wheel in "${ordered[@]}"; do
    size=$(stat -c %s "$wheel")
    [ "$size" -le "$limit" ] || fail "$(basename "$wheel") alone has more than $LIMIT_MIB MiB: set LIMIT_MIB"
    if [ $((used + size)) -gt "$limit" ]; then
      part=$((part + 1)) used=0
    fi
    mkdir -p "$directory/$part"
    mv "$wheel" "$directory/$part/"
    used=$((used + size))
  done
  du -sm "$directory"/[0-9]*
}

install() { # PART...
  local part
  for part in "$@"; do
    compgen -G "$part/*.whl" >/dev/null || fail "$part has no wheels"
    "$PYTHON" -m pip install --quiet --disable-pip-version-check --no-index --no-deps --no-compile --no-cache-dir --upgrade \
      --target "$SITE" "$part"/*.whl
    echo "installed $part into $SITE"
  done
}

there() { # NAME COMMAND...: run on the checkout's code for at most MINUTES; print to OUT/NAME.log and OUT/NAME.err too
  local name=$1 status=0
  shift
  mkdir -p "$OUT"
  # timeout ends the processes of the sides too: they are in its group.
  (
    cd "$ROOT"
    # The checkout's own code comes first, so that it may be newer than the wheel; the wheel has the entry points.
    PYTHONPATH=$(printf '%s:' "$ROOT" "$ROOT"/core "$ROOT"/eval "$ROOT"/plugins/*)$SITE
    export PYTHONPATH PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
    timeout --kill-after=20 "$(awk "BEGIN {print int($MINUTES * 60 + 40)}")" "$@"
  ) 2>>"$OUT/$name.err" | tee -a "$OUT/$name.log" || status=$?
  if [ "$status" -eq 124 ] || [ "$status" -eq 137 ]; then
    echo "$name was cut off after $MINUTES minutes" | tee -a "$OUT/$name.log"
    status=$UNFINISHED
  fi
  case $status in 0 | 1 | "$UNFINISHED") ;; *) tail -n 20 "$OUT/$name.err" >&2 ;; esac
  return "$status"
}

piece() { # OUT [WORDS]
  OUT=$1
  shift
  there gpu "$PYTHON" -m bench --device "$DEVICE" --resume --minutes "$MINUTES" --output "$OUT/gpu.json" "$@"
}

profile() { # OUT [WORDS]
  OUT=$1
  shift
  there profile "$PYTHON" -m bench.gpu.profile --device "$DEVICE" --output "$OUT/profile.json" "$@"
}

heads() { # OUT
  OUT=$1
  there heads "$PYTHON" -m bench.heads --device "$DEVICE" --output "$OUT/heads.json"
}

tests() { # OUT: on a machine without the other packages, only the files that take a device can be imported
  OUT=$1
  local files=()
  mapfile -t files < <(cd "$ROOT" && grep -rlE '^def test_.*\(.*\bdevice\b|^@pytest\.mark\.gpu' tests --include='test_*.py' | sort)
  there tests "$PYTHON" -m pytest -q -n "$WORKERS" -p no:cacheprovider -m gpu "${files[@]}"
}

run() { # OUT [WORDS]
  local status before after
  while :; do
    before=$(progress "$1") status=0
    piece "$@" || status=$?
    after=$(progress "$1")
    [ "$status" -eq "$UNFINISHED" ] || return "$status"
    [ "$before" != "$after" ] || fail "a piece of $MINUTES minutes measured nothing: set MINUTES"
  done
}

progress() { # OUT: a number that changes with what was measured
  cksum 2>/dev/null <"$1/gpu.json" || echo nothing
}

command=${1:-}
[ $# -gt 0 ] && shift
case $command in
  wheels) [ $# -eq 1 ] || usage && wheels "$1" ;;
  split) [ $# -eq 2 ] || usage && split "$1" "$2" ;;
  install) [ $# -ge 1 ] || usage && install "$@" ;;
  piece) [ $# -ge 1 ] || usage && piece "$@" ;;
  run) [ $# -ge 1 ] || usage && run "$@" ;;
  tests) [ $# -eq 1 ] || usage && tests "$1" ;;
  profile) [ $# -ge 1 ] || usage && profile "$@" ;;
  heads) [ $# -eq 1 ] || usage && heads "$1" ;;
  *) usage ;;
esac
