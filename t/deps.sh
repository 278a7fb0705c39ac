#!/usr/bin/env bash
# What building, testing and the demo need, from Debian's packages.  Says
# nothing and needs no privilege if everything is there.
set -eu

packages=(make gcc libc6-dev libdbd-pg-perl libipc-run-perl libpostgresql-jdbc-java libpq-dev libzstd-dev perl
	pgbouncer postgresql-15 postgresql-server-dev-15 spin)

missing=()
for p in "${packages[@]}"; do
	dpkg-query -W -f '${db:Status-Abbrev}' "$p" 2>/dev/null | grep -q '^ii' || missing+=("$p")
done
# npm brings PostgreSQL 18 as the new side of t/003; it may come from elsewhere than Debian
command -v npm >/dev/null || missing+=(npm)
command -v prove >/dev/null || missing+=(perl)
# a JDBC client runs from its source
command -v javac >/dev/null || missing+=(default-jdk-headless)
[ ${#missing[@]} -gt 0 ] || exit 0

if [ "$(id -u)" != 0 ]; then
	echo "these packages are missing, and only root can install them: ${missing[*]}" >&2
	exit 1
fi

echo "installing: ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
# the package would make a cluster and start it; we use throw-away ones
if [ ! -e /etc/postgresql-common/createcluster.conf ]; then
	mkdir -p /etc/postgresql-common
	echo 'create_main_cluster = false' > /etc/postgresql-common/createcluster.conf
fi
install() { apt-get install -y -q --no-install-recommends -o Dpkg::Options::=--force-confold "${missing[@]}"; }
install || { apt-get update -q && install; }
