#!/bin/sh
# Checks every model here with spin: without a bug it must hold, with each bug the checker must find it.
# Usage: run.sh [model ...]
set -eu
cd "$(dirname "$0")"

if ! command -v spin >/dev/null 2>&1; then
	echo "spin, the model checker, is missing: apt-get install spin" >&2
	exit 1
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0

# check MODEL FLAGS holds|fails
check() {
	file=$PWD/$1.pml
	name="$1${2:+ $2}"
	# -E: a worker that sleeps for ever is right if there is nothing to do, which the models assert when nothing moves any more.
	if ! (cd "$work" && spin $2 -a "$file" && ${CC:-cc} -O2 -w -DSAFETY -DCOLLAPSE -DVECTORSZ=2048 -o pan pan.c &&
		./pan -E -n -m1000000) >"$work/out" 2>&1; then
		echo "$name: cannot be checked" && cat "$work/out"
		failed=1
		return
	fi
	errors=$(sed -n 's/.*errors: \([0-9]*\).*/\1/p' "$work/out")
	states=$(sed -n 's/ *\([0-9.e+]*\) states, stored.*/\1/p' "$work/out")
	found=holds
	[ "$errors" = 0 ] || found="fails ($(sed -n 's/^pan:1: \(.*\) (at depth.*/\1/p' "$work/out"))"
	# A search that was cut short has shown nothing.
	if grep -q 'max search depth too small\|out of memory' "$work/out"; then
		found="is not searched to its end"
	fi
	case $found in
	$3*) echo "$name: $found, as it must ($states states)" ;;
	*) echo "$name: $found, but must be one that $3" && failed=1 ;;
	esac
}

for pml in ${*:-*.pml}; do
	model=${pml%.pml}
	check "$model" "" holds
	if [ "$model" = steal ]; then
		check "$model" "-DCAPACITY=4" holds
	fi
	for bug in $(sed -n 's/^ \* BUG=\([0-9]\).*/\1/p' "$model.pml"); do
		check "$model" "-DBUG=$bug" fails
	done
done
exit $failed
