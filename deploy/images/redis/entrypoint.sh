#!/bin/sh
# Writes the configuration with the password to a tmpfs that only the service's
# user can read, so that the password is in no argument list and no image, then
# becomes redis-server.
set -eu

own=/run/secrets-own
config=$own/redis.conf

umask 077
cat >"$config" <<END
bind 0.0.0.0
port 6379
dir /data
appendonly yes
appendfsync everysec
requirepass $(cat /secrets/redis_password)
END
chown redis:redis "$own" "$config" /data
chmod 0700 "$own"

exec setpriv --reuid=redis --regid=redis --init-groups --no-new-privs redis-server "$config"
