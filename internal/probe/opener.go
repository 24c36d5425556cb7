package probe

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
)

// An opener is a client that comes anew each time: it connects, runs select 1 and goes.
// It opens one connection at a time, so that a pause does not gather a crowd.
type opener struct {
	p    *Prober
	done []Opening
}

func newOpener(p *Prober) *opener {
	return &opener{p: p, done: make([]Opening, 0, capacity/p.config.NewConnectionEvery)}
}

func (o *opener) loop() {
	beat := time.NewTicker(o.p.config.NewConnectionEvery)
	defer beat.Stop()
	for !o.p.ended() {
		o.done = append(o.done, o.open())
		select {
		case <-o.p.stop:
		case <-beat.C:
		}
	}
}

func (o *opener) open() Opening {
	opening := Opening{Start: o.p.since()}
	conn, err := pgx.ConnectConfig(context.Background(), o.p.conn)
	opening.LoggedIn = o.p.since()
	opening.End = opening.LoggedIn
	if err != nil {
		opening.Err = err.Error()
		return opening
	}
	defer closeSoon(conn)
	_ = conn.PgConn().Conn().SetDeadline(time.Now().Add(o.p.config.TransactionTimeout))
	if _, err := conn.Exec(context.Background(), "select 1"); err != nil {
		opening.Err = err.Error()
	}
	opening.End = o.p.since()
	return opening
}
