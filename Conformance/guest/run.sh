# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# Sourced by Conformance/qemu-*: their options, the guest's image, QEMU under `iommu run`, and the
# counts. The guest tells what it found on its second serial port (guest/init.c).
#
# The script sets before: `me`, its name, and `about`, what --help says first. It may add to
# `own_options` (a name for each; they have no value) and `own_help`.

readonly failed=3
readonly root=$(dirname "$here")
# shellcheck source=../common/kernel.sh
source "$here/common/kernel.sh"
# shellcheck source=../common/confined.sh
source "$here/common/confined.sh"

iommu='' confine=false accel=tcg limit=300 keep_log=false verbose=false build_only=false if_built=false
declare -A own=()
usage() {
  cat <<TEXT
Usage: Conformance/$me [OPTIONS]

$about

${own_help-}  --iommu PATH       use this iommu instead of building one with swift build
  --confined         run QEMU as a container would confine it: Docker's default profile
  --accel tcg|kvm    how QEMU runs the guest ($accel)
  --timeout SECONDS  end a guest that takes longer ($limit)
  --keep-log         keep what QEMU, the guest's kernel and iommu have printed, and say where
  --verbose          print everything that the guest judges, not only what failed
  --build-only       build the guest's kernel, print where it is, and stop
  --if-built         where that kernel is not built yet, count one skipped and stop
  --help             print this

The guest's kernel is built once, from Debian's $package (4 to 10 minutes on 2 cores), and
kept in $cache. The last line is the count:
N passed, N failed, N skipped.
Exit status: 0 all passed, 1 some failed, 2 wrong usage, 3 could not run.
TEXT
}
while (($#)); do
  case $1 in
    --help | -h) usage; exit 0 ;;
    --iommu) iommu=${2:?--iommu needs a path}; shift ;;
    --confined) confine=true ;;
    --accel)
      accel=${2-}
      [[ $accel =~ ^(tcg|kvm)$ ]] || die "--accel is tcg or kvm, not '$accel'" 2
      shift ;;
    --timeout) limit=$(number "$1" "${2-}"); shift ;;
    --keep-log) keep_log=true ;;
    --verbose) verbose=true ;;
    --build-only) build_only=true ;;
    --if-built) if_built=true ;;
    *)
      [[ $1 == --* && " ${own_options-} " == *" ${1#--} "* ]] ||
        { say "unknown option '$1'"; usage >&2; exit 2; }
      own[${1#--}]=yes ;;
  esac
  shift
done
[[ $(uname -m) == x86_64 ]] || die "this machine is $(uname -m); the guest is built for x86_64"

if $if_built && ! find_kernel guest "$here/guest/config"; then
  say "the guest's kernel is not built; Conformance/$me --build-only builds it"
  echo '0 passed, 0 failed, 1 skipped'
  exit 0
fi
prepare_kernel guest "$here/guest/config"
if $build_only; then echo "$kernel"; exit 0; fi
prepare_init "$here/guest"
if [[ -z $iommu ]]; then
  say 'building iommu'
  (cd "$root" && swift build --product iommu >"$cache/$me-swift.log" 2>&1) ||
    { tail -20 "$cache/$me-swift.log" >&2; die "swift build failed, see $cache/$me-swift.log"; }
  iommu=$(cd "$root" && swift build --product iommu --show-bin-path)/iommu
fi
[[ -x $iommu ]] || die "$iommu: no such program"
if $confine; then confine "$cache/confined.log" || die "swift build failed, see $cache/confined.log"; fi
readonly run=("${confined[@]}" "$iommu" run --no-memlock-limit)

readonly work=$(mktemp -d "${TMPDIR:-/tmp}/$me.XXXXXX")
# What runs for us has this in its environment, and nobody else has.
export SWIFT_IOMMU_GUEST=$work
mkdir "$work/temporary"
runner=''
clean_up() {
  [[ -z $runner ]] || kill "$runner" 2>/dev/null || true
  local one
  for one in $(processes_left); do kill -9 "$one" 2>/dev/null || true; done
  if $keep_log; then say "the logs are in $work"; else rm -rf "$work"; fi
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

start_list
for one in ${programs-}; do add_program "$one"; done
finish_list "$work/image"

# --- Counting -----------------------------------------------------------------------------------

passed=0 failures=0 skipped=0
ok() { passed=$((passed + 1)); if $verbose; then printf 'ok      %s\n' "$*"; fi; }
not_ok() { failures=$((failures + 1)); printf 'FAILED  %s\n' "$*"; }
skip() { skipped=$((skipped + 1)); printf 'skipped %s\n' "$*"; }
check() { # WHAT COMMAND…
  local what=$1
  shift
  if "$@"; then ok "$what"; else not_ok "$what"; fi
}
finish() {
  printf '%d passed, %d failed, %d skipped\n' "$passed" "$failures" "$skipped"
  ((failures == 0))
  exit
}

# --- The guest ----------------------------------------------------------------------------------

# What -device takes for a function of the machine's. KVM would give the guest the pages of the
# registers themselves, behind which nothing is.
function_at() { # ADDRESS
  echo "vfio-pci,host=$1$([[ $accel == tcg ]] || echo ,x-no-mmap=on)"
}

# Starts a guest; `wait_guest` takes its end. What QEMU gets of devices is in its arguments.
#   under: the words before qemu: (iommu run …) or none, for a guest without us.
guest=''
start_guest() { # NAME KERNEL-ARGUMENTS QEMU-ARGUMENTS…
  guest=$work/$1
  local append=$2
  shift 2
  : >"$guest.words"
  started=$(date +%s%N)
  TMPDIR=$work/temporary timeout --kill-after=10 "$limit" "${under[@]}" qemu-system-x86_64 \
    -M "q35${machine_options-}" -accel "$accel" \
    -cpu "$([[ $accel == tcg ]] && echo max || echo host)" -m 256 \
    -nodefaults -no-user-config -display none -no-reboot -pidfile "$guest.pid" \
    -kernel "$kernel" -initrd "$work/image" \
    -append "console=ttyS0 loglevel=5 panic=-1 oops=panic reboot=t tsc=reliable no_timer_check $append" \
    -serial "file:$guest.console" -serial "file:$guest.words" \
    "$@" </dev/null >"$guest.log" 2>&1 &
  runner=$!
}

# Sets status and took, in milliseconds.
wait_guest() {
  status=0
  # The shell would say of a killed one what it was.
  { wait "$runner"; } 2>/dev/null || status=$?
  runner=''
  took=$((($(date +%s%N) - started) / 1000000))
}

# What dmatest says of its speed.
say_speed() {
  sed -n "s/^note \(.* copies in .*\)/${guest##*/}: \1/p" "$guest.words" | tr -d '\r'
}

# Waits for a line of the guest's; false where it ends first.
wait_words() { # PATTERN
  while ! grep -qE "$1" "$guest.words"; do
    kill -0 "$runner" 2>/dev/null || return 1
    sleep 0.05
  done
}

run_guest() { # NAME KERNEL-ARGUMENTS QEMU-ARGUMENTS…
  start_guest "$@"
  wait_guest
  judge_words
  judge_end
}

# Counts what the guest judged.
judge_words() {
  local name=${guest##*/} line
  while read -r line; do
    case $line in
      'ok '*) ok "$name: ${line#ok }" ;;
      'not-ok '*) not_ok "$name: ${line#not-ok }" ;;
      'note '*) if $verbose; then printf '        %s: %s\n' "$name" "${line#note }"; fi ;;
    esac
  done < <(tr -d '\r' <"$guest.words")
  if grep -aqE 'WARNING: |BUG: |Oops' "$guest.console" 2>/dev/null; then
    not_ok "$name: the guest's kernel complains"
    grep -aE -m5 'WARNING: |BUG: |Oops|RIP: 0010' "$guest.console" | sed 's/^/    console: /'
  fi
}

# That it came to its end, and left nothing behind.
judge_end() {
  local name=${guest##*/}
  if grep -q '^end' "$guest.words" && [[ $status == 0 ]]; then
    ok "$name: the guest came to its end in $((took / 1000)).$((took % 1000 / 100)) s"
  else
    not_ok "$name: the guest has not come to its end (status $status)"
    { tail -n 15 "$guest.console" || true; } 2>/dev/null | sed 's/^/    console: /'
    tail -n 15 "$guest.log" | sed 's/^/    qemu: /'
  fi
  check "$name: nothing is left behind" nothing_left
}

# QEMU ends by signal 9, and iommu run the same way.
kill_guest() {
  local name=${guest##*/}
  kill -9 "$(<"$guest.pid")"
  wait_guest
  judge_words
  check "$name: iommu run ends as QEMU did, by signal 9 (status $status)" test "$status" = 137
  check "$name: nothing is left behind" nothing_left
}

# --- What a run leaves behind -------------------------------------------------------------------

# Processes that were started here and still run: this shell's own are not among them.
processes_left() {
  local one
  for one in /proc/[0-9]*; do
    one=${one#/proc/}
    [[ $one != "$$" && $one != "$BASHPID" ]] || continue
    if tr '\0' '\n' 2>/dev/null <"/proc/$one/environ" | grep -qx "SWIFT_IOMMU_GUEST=$work"; then
      echo "$one"
    fi
  done
}

nothing_left() {
  local tries left
  for tries in {1..50}; do
    left=$(processes_left)
    [[ -n $left ]] || break
    sleep 0.1
  done
  [[ -z $left ]] || { printf '    process %s: %s\n' "$left" "$(ps -o args= -p ${left//$'\n'/,})"; return 1; }
  [[ -z $(ls -A "$work/temporary") ]] || { ls -la "$work/temporary"; return 1; }
  # What was there before may go meanwhile: an earlier run's, or another's that ends.
  left=$(comm -23 <(ls -A /dev/shm 2>/dev/null) "$work/shm-before")
  [[ -z $left ]] || { printf '    /dev/shm: %s\n' "$left"; return 1; }
  ! grep -q "$work" /proc/self/mounts
}
ls -A /dev/shm >"$work/shm-before" 2>/dev/null || true
