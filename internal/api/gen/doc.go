// Package gen is generated from openapi.yaml: the types of the HTTP API, the
// router glue of the server and a client. Nothing here is written by hand.
package gen
