package server

import (
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"controld/internal/node/child"
	"controld/internal/pgcontrol"
)

// How often a checkpointer is nudged, and for how long. It begins its work only after
// the last client has ended, which can take a while, and does not sleep before.
const (
	nudgePeriod = time.Millisecond
	nudgeTime   = 2 * time.Second
)

// nudge shortens the stop of a server that leads. Its checkpointer tells the
// walsenders to stop, and looks whether they have. Mostly it looks a little too early,
// and sleeps for 10 ms (WalSndWaitStopping in PostgreSQL's walsender.c). That is a
// quarter of the time for which a planned failover holds its clients.
//
// Any signal ends the sleep (pg_usleep in pgsleep.c), and the checkpointer looks again.
// SIGUSR1 means nothing else where no reason for it stands in shared memory
// (procsignal_sigusr1_handler in procsignal.c).
func (n *Init) nudge(server *child.Process) {
	checkpointer := server.Child(isCheckpointer)
	if checkpointer == nil {
		return
	}
	defer func() { _ = checkpointer.Release() }()
	tick := time.NewTicker(nudgePeriod)
	defer tick.Stop()
	nudges := 0
	defer func() { n.log.Info("checkpointer nudged", "times", nudges) }()
	for began := time.Now(); time.Since(began) < nudgeTime; nudges++ {
		select {
		case <-server.Done():
			return
		case <-tick.C:
		}
		control, err := pgcontrol.Read(n.cfg.dataDir())
		if err != nil || control.State != pgcontrol.StateInProduction {
			return // its checkpoint has begun, or it has nobody to wait for
		}
		if checkpointer.Signal(unix.SIGUSR1) != nil {
			return // it has ended
		}
	}
}

// isCheckpointer knows the title with and without a cluster_name.
func isCheckpointer(title string) bool {
	return strings.HasPrefix(title, "postgres: ") && strings.HasSuffix(title, " checkpointer")
}
