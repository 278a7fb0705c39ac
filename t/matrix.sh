#!/usr/bin/env bash
# The tests on other versions of PostgreSQL: 17 and 18 as Debian's testing and
# unstable bring them, each in a folder of its own.  As root; not part of "make
# test".  CUTOVER_MATRIX="trixie:17" chooses; the folders stay in $CUTOVER_CACHE.
#
# The mirror is the one that this machine's apt uses.
set -eu
cd "$(dirname "$0")/.."

: "${CUTOVER_MATRIX:=trixie:17 sid:18}" "${CUTOVER_CACHE:=/var/cache/cutover-test}"
[ "$(id -u)" = 0 ] || { echo "only root can make such folders" >&2; exit 1; }
command -v debootstrap > /dev/null || DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends debootstrap

mirror=$(apt-get indextargets --format '$(REPO_URI) $(SUITE)$(RELEASE)' 'Created-By: Packages' 'Origin: Debian' |
	grep -v security | cut -d' ' -f1 | sort -u | head -1)
[ -n "$mirror" ] || { echo "apt knows no mirror of Debian" >&2; exit 1; }

mounted=()
unmount() { for m in "${mounted[@]}"; do umount -l "$m" 2>/dev/null || true; done; mounted=(); }
trap unmount EXIT

result=0
for entry in $CUTOVER_MATRIX; do
	suite=${entry%:*} major=${entry#*:} root=$CUTOVER_CACHE/$suite
	echo "--- PostgreSQL $major ($suite)"
	if [ ! -e "$root/.complete" ]; then
		rm -rf "$root"
		mkdir -p "$root"
		debootstrap --variant=minbase --include=ca-certificates "$suite" "$root" "$mirror"
		touch "$root/.complete"
	fi
	mkdir -p "$root/dev/shm"
	mount -t proc proc "$root/proc" 2>/dev/null && mounted+=("$root/proc")
	mount --bind /dev/shm "$root/dev/shm" 2>/dev/null && mounted+=("$root/dev/shm")
	chmod 1777 "$root/dev/shm"
	cp /etc/resolv.conf "$root/etc/resolv.conf"
	[ ! -d /etc/apt/apt.conf.d ] || cp -n /etc/apt/apt.conf.d/*proxy* "$root/etc/apt/apt.conf.d/" 2>/dev/null || true

	mkdir -p "$root/etc/postgresql-common" "$root/cutover"
	echo 'create_main_cluster = false' > "$root/etc/postgresql-common/createcluster.conf"
	printf '#!/bin/sh\nexit 101\n' > "$root/usr/sbin/policy-rc.d"
	chmod +x "$root/usr/sbin/policy-rc.d"
	rm -rf "$root/cutover"
	mkdir "$root/cutover"
	git archive HEAD | tar -x -C "$root/cutover"

	# tests that bring another version as new have nothing to add here; from
	# PostgreSQL 16 on a library hides its symbols from the module that tests it
	tap=$(grep -LE 'CutoverTest::Embedded|apply_test|policy_test' t/*.pl | tr '\n' ' ')
	chroot "$root" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive bash -eu -c '
		major=$1 tap=$2
		apt-get -o Acquire::Check-Valid-Until=false update -q	# unstable as a mirror may have kept it
		apt-get install -y -q --no-install-recommends make gcc libc6-dev libipc-run-perl libpq-dev libzstd-dev perl git \
			postgresql-$major postgresql-server-dev-$major postgresql-contrib >/dev/null
		cd /cutover
		make test-run PG_CONFIG=/usr/lib/postgresql/$major/bin/pg_config TAP="$tap"
	' matrix "$major" "$tap" || result=1
	unmount
done
exit "$result"
