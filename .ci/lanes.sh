# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# Sourced by .ci/run: what runs under `iommu run`, in two lanes, `plain`, as it is, and `confined`, as
# a container would have it (Tests/Programs/confined). Both have to count the same.
#
# .ci/run sets before: built, scratch, hang; step, count, remember and failures.

# What each part counted is in $scratch/LANE.counts: its name, its status and its counts, in a line.
judge() { # judge SCRIPT [OPTIONS]: the last line that it prints is the count
  local what=$* log=$scratch/$lane.log status option=()
  if [[ $lane == confined ]]; then option=(--confined); fi
  step "$what, $lane"
  "$1" --iommu "$built/iommu" "${@:2}" "${option[@]}" 2>&1 | tee "$log"
  status=${PIPESTATUS[0]}
  printf '%s\t%s\t%s\n' "$what" "$status" \
    "$(grep -E '(^| )[0-9]+ passed, [0-9]+ failed, [0-9]+ skipped$' "$log" | paste -sd ';')" \
    >>"$scratch/$lane.counts"
}

# Names of the tests that passed, with how many cases each had.
passes() { sed -nE 's/^✔ Test (.*) passed after [0-9.]+ seconds\.$/\1/p' "$1" | grep -v '^run with' | sort; }

# The plain lane's have run among all tests. Not by `swift test`: another one may be under way.
confined_tests() {
  local tests=("$built/swift-iommuPackageTests.xctest" --testing-library swift-testing)
  local filter='^(InterposerTests|iommuTests)\.' log=$scratch/tests.log expected passed status
  step 'tests, confined'
  expected=$("${tests[@]}" --list-tests 2>/dev/null | grep -cE "$filter")
  # Where none is listed none would be missed.
  if ((expected == 0)); then expected=1; fi
  NO_COLOR=1 "${hang[@]}" "$built/confined" "${tests[@]}" --filter "$filter" >"$log" 2>&1
  status=$?
  grep -E '^✘|^✔ Test run' "$log"
  passes "$log" >"$scratch/confined.passes"
  passed=$(wc -l <"$scratch/confined.passes")
  printf 'tests\t%s\t%d passed, %d failed, 0 skipped\n' "$status" "$passed" $((expected - passed)) \
    >>"$scratch/confined.counts"
}

demo() {
  local confined=() log=$scratch/$lane.log
  if [[ $lane == confined ]]; then confined=("$built/confined"); fi
  step "the demo, $lane"
  if "${confined[@]}" "$built/iommu" demo >"$log" 2>&1; then
    printf 'the demo\t0\t1 passed, 0 failed, 0 skipped\n'
  else
    tail -n 20 "$log" >&2
    printf 'the demo\t1\t0 passed, 1 failed, 0 skipped\n'
  fi >>"$scratch/$lane.counts"
}

run_lane() { # run_lane LANE: does it all, and says what comes of it
  local lane=$1 guest
  : >"$scratch/$lane.counts"
  demo
  if [[ $lane == confined ]]; then confined_tests; fi
  judge Conformance/own-cases
  judge Conformance/dpdk --quick --if-installed
  # Where the guest's kernel has been built before: that takes longer than all of these.
  for guest in qemu-dmatest qemu-intel-iommu qemu-nvme; do judge "Conformance/$guest" --quick --if-built; done
  if [[ -z ${SKIP_CONFORMANCE:-} ]]; then judge Conformance/kernel-selftests; fi
}

# Counts what a lane left, and says of the confined one where it differs from the other.
settle() { # settle LANE
  local lane=$1 what status counts name plain
  while IFS=$'\t' read -r what status counts; do
    name="$what, $lane"
    if [[ $counts =~ ([0-9]+)\ passed,\ ([0-9]+)\ failed,\ ([0-9]+)\ skipped$ ]]; then
      count "${BASH_REMATCH[1]}" "${BASH_REMATCH[2]}" "${BASH_REMATCH[3]}"
      # The last line of the kernel's counts one of two programs.
      if ((status != 0 && BASH_REMATCH[2] == 0)); then count 0 1 0; fi
    else
      count 0 1 0
      status=${status/#0/no count}
    fi
    if [[ $status != 0 ]]; then failures+=("$name, with status $status"); fi
    plain=$(awk -F '\t' -v what="$what" '$1 == what { print $3 }' "$scratch/plain.counts")
    if [[ $lane == confined && $what != tests && $counts != "$plain" ]]; then
      failures+=("$what: '$counts' where it is confined, '$plain' where it is not")
      count 0 1 0
    fi
  done <"$scratch/$lane.counts"
  if [[ $lane == plain ]]; then return; fi
  # A test that passes with other cases than in the plain lane is not the same test.
  while IFS= read -r what; do
    failures+=("tests, confined: other cases than in the plain lane: $what")
    count -1 1 0
  done < <(comm -13 "$scratch/plain.passes" "$scratch/confined.passes")
  log=$scratch/tests.log remember 'tests, confined'
}
