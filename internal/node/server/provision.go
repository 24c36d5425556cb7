package server

import (
	"context"
	"path/filepath"
	"time"

	"controld/internal/node"
	"controld/internal/node/child"
)

// provisionTimeout bounds all of a provision.
const provisionTimeout = time.Minute

// provision runs what was ordered on the server, which goes on, and reports how that went.
func (n *Init) provision(ctx context.Context, server *child.Process, o node.Order) {
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, provisionTimeout)
	defer cancel()
	done := node.Provisioned{Epoch: o.Epoch}
	socketDir := filepath.Join(n.cfg.NodeDir, node.SocketDir)
	for _, b := range o.Provision {
		if err := runBatch(ctx, server, socketDir, b); err != nil {
			done.Error = err.Error()
			break
		}
	}
	n.log.Info("provision done", "epoch", o.Epoch, "duration_ms", time.Since(began).Milliseconds(), "err", done.Error)
	n.logStatusError(n.status.update(func(s *node.Status) { s.Provisioned = &done }))
}
