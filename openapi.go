// Package controld holds the contract of the HTTP API, so that the program can
// serve and obey the very file that a reader sees. The program is in cmd.
package controld

import _ "embed"

// OpenAPI is openapi.yaml.
//
//go:embed openapi.yaml
var OpenAPI []byte
