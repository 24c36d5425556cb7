#!/usr/bin/env bash
# Runs compose on this cluster, with its settings and its project name:
#
#     deploy/compose/compose.sh ps
#
# A plain `up` recreates a container whose image was rebuilt, which stops a
# running primary in an uncontrolled way. Use `make up`, or add --no-recreate.
. "$(dirname "$0")/lib.sh"

compose "$@"
