#!/usr/bin/env bash
# Broken twins of the durable path: each patch below breaks one promise; the tests named beside it must fail. A twin that
# survives means that the tests would not notice the same mistake of ours.
#
#   scripts/mutants.sh            all of them; minutes each
#   scripts/mutants.sh NAME...    only these
#   RUN="nice cargo"              how cargo is called
#
# Works on a copy of the tree in target/mutants, with a copy of target/debug to begin with. Ends with code 1 if one survives
# or a patch does not fit any more.
set -uo pipefail
cd "$(dirname "$0")/.."
root=$PWD
copy=$root/target/mutants
run=${RUN:-cargo}
wanted=" $* "
results=()
bad=0

# A twin may make a test wait for ever; cargo names the test that has been running for long before the time is over.
export "CARGO_TARGET_$(rustc -vV | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_')_RUNNER"="timeout 240"

prepare() {
    rm -rf "$copy/tree"
    mkdir -p "$copy/target" "$copy/tree"
    git ls-files -z --cached --others --exclude-standard | tar -c --null -T - | tar -x -C "$copy/tree" ||
        { echo "mutants: the tree cannot be copied" >&2; exit 2; }
    [ -d "$copy/target/debug" ] || cp -a --reflink=auto target/debug "$copy/target/" 2>/dev/null || true
}

# mutant NAME FILE "cargo test arguments" <<< "what stands there" + line "=====" + "what is put in its place"
mutant() {
    local name=$1 file=$2 tests=$3 patch from to code began by
    patch=$(cat)
    [ "$wanted" = "  " ] || [[ $wanted == *" $name "* ]] || return 0
    from=${patch%%$'\n'=====$'\n'*}
    to=${patch#*$'\n'=====$'\n'}
    cp -p "$root/$file" "$copy/whole"
    if ! FROM=$from TO=$to perl -0777 -pi -e \
        '$n = () = /\Q$ENV{FROM}\E/g; $n == 1 or die "found $n times\n"; s/\Q$ENV{FROM}\E/$ENV{TO}/' "$copy/tree/$file"; then
        results+=("$name|PATCH DOES NOT FIT|0|$file"); bad=1
        cp "$copy/whole" "$copy/tree/$file"
        return 0
    fi
    began=$SECONDS
    ( cd "$copy/tree" && CARGO_TARGET_DIR="$copy/target" \
        $run test --workspace --no-run $tests ) >"$copy/$name.build" 2>&1
    if [ $? != 0 ]; then
        results+=("$name|DOES NOT BUILD|$((SECONDS - began))|see $copy/$name.build"); bad=1
    else
        ( cd "$copy/tree" && CARGO_TARGET_DIR="$copy/target" \
            $run test --workspace --no-fail-fast $tests ) >"$copy/$name.test" 2>&1
        code=$?
        # Only a test that failed, or hung, is a verdict: a run that was cut off, or that never began, is none.
        by=$(grep -aE '^test .* FAILED$|panicked at|^test .* has been running' "$copy/$name.test" | head -n 1 | cut -c 1-90)
        if [ $code = 0 ]; then
            results+=("$name|SURVIVED|$((SECONDS - began))|$tests"); bad=1
        elif [ -z "$by" ]; then
            results+=("$name|NO VERDICT|$((SECONDS - began))|code $code, see $copy/$name.test"); bad=1
        else
            results+=("$name|killed|$((SECONDS - began))|$by")
        fi
    fi
    cp "$copy/whole" "$copy/tree/$file"
    touch "$copy/tree/$file"
    echo "${results[-1]}"
}

prepare

# The tests pass as the tree stands, or no failure below says anything.
if [ "$wanted" = "  " ]; then
    ( cd "$copy/tree" && CARGO_TARGET_DIR="$copy/target" $run test --workspace --test durable_shards --test accepted_loss ) \
        >"$copy/whole.test" 2>&1 || { echo "mutants: the tests fail without a twin, see $copy/whole.test" >&2; exit 2; }
fi

mutant sync-skipped broker/src/io/disk/blocking.rs "--test lossy_disk --test io_disk_trace --test durable_trace" <<'X'
    match unsafe { libc::fdatasync(file.as_file().as_raw_fd()) } {
=====
    match unsafe { file.as_file().as_raw_fd() * 0 } {
X
mutant memory-not-let-go shard/src/shard.rs "--test memory_is_let_go" <<'X'
            return (self.log.held_bytes() > 0 || self.may_let_flushed_go(part)).then_some(now.wall);
=====
            return (self.log.held_bytes() > 0 && self.may_let_flushed_go(part)).then_some(now.wall);
X
mutant damaged-shard-pins-wal wal/src/log.rs "--test damaged_shard" <<'X'
            Health::Damaged(range) => range.to <= self.meta.flushed_to,
=====
            Health::Damaged(_) => false,
X
mutant cut-leaves-wal wal/src/repair.rs "--test damaged_shard --test damaged_records" <<'X'
        let change = MetaChange { included: in_wal.map(|it| it.last), ..MetaChange::default() };
=====
        let change = MetaChange { included: in_wal.map(|it| it.last).filter(|_| false), ..MetaChange::default() };
X
mutant cut-gives-offsets-again wal/src/repair.rs "--test damaged_shard --test damaged_records --test damage" <<'X'
        let go_on_at = Offset(end.0.saturating_add(LOST_OFFSETS));
=====
        let go_on_at = Offset(to.0.saturating_add(1));
X
mutant folder-made-anew broker/src/route.rs "--test lost_folder" <<'X'
            made: place.made,
=====
            made: place.made && false,
X
mutant ack-overtakes shard/src/store/part.rs "--test acks_in_order" <<'X'
        self.may_be_early && self.shows
=====
        self.may_be_early && self.checkpoint.shows_early
X
mutant ack-before-durable shard/src/shard.rs "--test durable_shards --test durable_trace" <<'X'
part.is_early() || to <= part.durable_to) {
=====
part.is_early() || to <= part.durable_to || to.0 > 0) {
X
mutant flushed-before-meta shard/src/store/flush.rs "--test durable_shards" <<'X'
                part.work = Work::Flush { through, bytes, checkpoint };
=====
                part.work = Work::Flush { through, bytes, checkpoint };
                self.wal.flushed(now.time, shard.config.shard, shard.config.lineage, end, through);
X
mutant last-group-dropped wal/src/judge.rs "--test durable_shards --test durable_records" <<'X'
            end = run.last;
=====
            let _ = run;
X
mutant retention-past-producers shard/src/store/flush.rs "--test durable_shards" <<'X'
            floor: (!none_needed).then_some(part.checkpoint.through),
=====
            floor: None,
X
mutant dedup-not-restored shard/src/store/opening.rs "--test durable_shards" <<'X'
                        let dedup = Dedup::restore(producers);
=====
                        let dedup = Dedup::default();
X
mutant history-off-by-one shard/src/store/history.rs "--test durable_shards" <<'X'
            Wish::Batches(offset) => ReadFrom::Offset(offset.max(shard.log_start())),
=====
            Wish::Batches(offset) => ReadFrom::Offset(felix_protocol::position::Offset(offset.0 + 1).max(shard.log_start())),
X
mutant rested-reader-takes-next wal/src/read.rs "--test reading_behind --test durable_shards" <<'X'
                if let Some(open) = log.open.as_ref().filter(|open| open.base == self.segment.base) {
=====
                if let Some(open) = log.open.as_ref() {
X
mutant readers-jump-queue shard/src/store/history.rs "--test history_places" <<'X'
        if !self.history.wishes.is_empty() || now.time < self.history.not_before || !self.make_place() {
=====
        if now.time < self.history.not_before || !self.make_place() {
X
mutant sealed-in-clear-wal shard/src/store.rs "--test durable_shards" <<'X'
        let (sealed_by, stored) = match part.sealed_for {
=====
        let (sealed_by, stored) = match part.sealed_for.filter(|_| false) {
X
mutant sealed-in-clear-segment shard/src/store/flush.rs "--test durable_shards" <<'X'
            let pushed = match part.sealed_for {
=====
            let pushed = match part.sealed_for.filter(|_| false) {
X
mutant full-disk-not-refused shard/src/store.rs "--test durable_shards" <<'X'
        if !self.room.takes(self.unflushed_bytes, bytes) {
=====
        if !self.room.takes(self.unflushed_bytes, bytes) && bytes == 0 {
X

mutant loss-gives-offsets-again shard/src/recovery.rs "--test accepted_loss" <<'X'
            leave_out_lost(self.disk, self.maker, self.now)?;
=====
            // Nothing is left out.
X
mutant loss-removes-log shard/src/recovery.rs "--test accepted_loss" <<'X'
            let all_used = self.report.accepted.is_empty();
=====
            let all_used = self.report.orphans.is_empty();
X

echo
printf '%-26s %-20s %7s  %s\n' mutant outcome seconds by
for line in "${results[@]}"; do
    IFS='|' read -r name outcome seconds by <<<"$line"
    printf '%-26s %-20s %7s  %s\n' "$name" "$outcome" "$seconds" "$by"
done
exit $bad
