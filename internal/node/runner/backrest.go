package runner

import (
	"controld/internal/job"
	"controld/internal/node"
	"controld/internal/node/archive"
)

// BackRest is the configuration of the container that makes backups.
func BackRest() Config {
	return Config{
		Socket: "/control/" + job.SocketFile,
		Programs: map[string][]string{
			"pgbackrest":        {archive.Program},
			archive.PushProgram: {"/usr/local/bin/controld-node", archive.PushProgram},
		},
		Owned: []string{archive.RepositoryDir},
		UID:   node.UID,
		GID:   node.GID,
		// The list of ten thousand backups has 10 MB.
		KeptBytes: 64 << 20,
		Prepare:   func() error { return archive.WritePassphrase("/secrets", "/run/secrets-own", node.UID, node.GID) },
	}
}
