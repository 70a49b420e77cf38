#!/bin/sh
# Makes the cluster of databases when there is none, then serves it. What runs it may have any uid.
set -eu
user=${POSTGRES_USER:-postgres}
if [ ! -s "$PGDATA/PG_VERSION" ]; then
	mkdir -p "$PGDATA.new"
	chmod 700 "$PGDATA.new"
	printf %s "$POSTGRES_PASSWORD" >/tmp/password
	initdb -D "$PGDATA.new" -U "$user" --pwfile=/tmp/password --auth-host=scram-sha-256 --auth-local=trust --encoding=UTF8 >/dev/null
	rm /tmp/password
	echo "host all all all scram-sha-256" >>"$PGDATA.new/pg_hba.conf"
	pg_ctl -D "$PGDATA.new" -w -o "-c listen_addresses='' -k /tmp" start >/dev/null
	[ "${POSTGRES_DB:-$user}" = postgres ] || createdb -h /tmp -U "$user" "${POSTGRES_DB:-$user}"
	for file in /docker-entrypoint-initdb.d/*.sql; do
		[ ! -f "$file" ] || psql -v ON_ERROR_STOP=1 -q -h /tmp -U "$user" -d "${POSTGRES_DB:-$user}" -f "$file"
	done
	pg_ctl -D "$PGDATA.new" -w -m fast stop >/dev/null
	mv "$PGDATA.new" "$PGDATA"
fi
exec postgres -c jit=off -D "$PGDATA" -c listen_addresses='*' -c unix_socket_directories=/tmp "$@"
