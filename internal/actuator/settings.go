package actuator

import (
	"context"
	"fmt"

	"controld/internal/cluster"
)

// PrimarySettings are those of a node that leads. synced: commits wait for the
// other node; in mode strict they always do.
func (a *Actuator) PrimarySettings(n cluster.Node, synced bool) cluster.RoleSettings {
	s := cluster.RoleSettings{ArchiveCommand: a.Settings.ArchiveCommand(n)}
	if synced || a.Settings.Replication == cluster.Strict {
		s.SynchronousStandbys = cluster.NodeNames(a.Others(n.Name))
	}
	return s
}

// StandbySettings are those of a node that streams from upstream. Its
// restore_command stays empty: a promotion would call it five times. In mode
// strict it holds the names of its standbys before it leads, in mode sync none.
//
// Its archive_command is empty, too: a promotion archives nothing before it is known to
// stand. A server in recovery calls none.
//
// It finds upstream by its address. A walreceiver that looks up the name of a
// container that has ended waits for the name servers of the machine, for 20 s
// where they do not answer, and a promotion waits for the walreceiver.
// Supervision notices when the address is another one.
func (a *Actuator) StandbySettings(ctx context.Context, n, upstream cluster.Node) cluster.RoleSettings {
	s := a.PrimarySettings(n, false)
	s.ArchiveCommand = ""
	s.Upstream, s.Slot, s.UpstreamAddress = &upstream, n.Slot(), a.Address(ctx, upstream)
	return s
}

// ApplySettings makes s durable and lets the running server take it up.
func (a *Actuator) ApplySettings(ctx context.Context, sessions *Sessions, n cluster.Node, s cluster.RoleSettings) error {
	if err := a.Outside.Volumes.WriteSettings(n, s); err != nil {
		return fmt.Errorf("settings of %s: %w", n.Name, err)
	}
	want := map[string]string{
		"archive_command":           s.ArchiveCommand,
		"restore_command":           s.RestoreCommand,
		"synchronous_standby_names": cluster.SynchronousNames(s.SynchronousStandbys),
	}
	return sessions.With(ctx, n, func(session cluster.Session) error { return session.Reload(ctx, want) })
}

// ReloadServers lets the servers of these nodes read the files that controld has
// written anew. One that does not run, as at the first start, reads them when it does.
func (a *Actuator) ReloadServers(ctx context.Context, nodes []cluster.Node) {
	ctx, cancel := context.WithTimeout(ctx, SettingDeadline)
	defer cancel()
	sessions := a.Sessions()
	defer sessions.CloseAll()
	for _, n := range nodes {
		if a.Unlocked(n) {
			continue
		}
		if err := sessions.With(ctx, n, func(session cluster.Session) error { return session.Reload(ctx, nil) }); err != nil {
			a.Log.Warn("new settings are read at the server's next start", "node", n.Name, "err", err)
		}
	}
}
