#!/bin/sh
# entrypoint.sh etcd NAME        the store that Patroni needs
# entrypoint.sh node NAME ETCD   one PostgreSQL server under Patroni
set -eu
case $1 in
etcd)
	exec etcd --name "$2" --data-dir /data/etcd \
		--listen-client-urls http://0.0.0.0:2379 --advertise-client-urls "http://$2:2379"
	;;
node)
	sed -e "s/@NAME@/$2/" -e "s/@ETCD@/$3/" /etc/patroni.yml.in >/tmp/patroni.yml
	exec patroni /tmp/patroni.yml
	;;
esac
