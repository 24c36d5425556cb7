package probe

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// keptFailures bounds what one worker keeps in words; all are counted.
const keptFailures = 10_000

// A worker is one client: a connection and a sequence of transactions over it.
type worker struct {
	p      *Prober
	number int64
	insert string
	conn   *pgx.Conn
	tries  uint16 // connects since the last transaction

	done           []Transaction // the index is the transaction's number
	failures       []Failure
	failedConnects []FailedConnect
}

func newWorker(p *Prober, number int) *worker {
	return &worker{
		p:      p,
		number: int64(number),
		insert: "insert into " + p.table() + " (run, worker, seq) values ($1, $2, $3)",
		done:   make([]Transaction, 0, capacity/p.config.Every),
	}
}

// loop starts at a moment of its own, so that the workers do not beat together.
func (w *worker) loop() {
	defer w.disconnect()
	w.p.pause(w.p.config.cycle() * time.Duration(w.number) / time.Duration(w.p.config.Workers))
	beat := time.NewTicker(w.p.config.Every)
	defer beat.Stop()
	for !w.p.ended() {
		if w.connected() {
			w.transaction()
		}
		select {
		case <-w.p.stop:
		case <-beat.C:
		}
	}
}

// connected connects where there is no connection, until there is one or the
// load ends.
func (w *worker) connected() bool {
	for w.conn == nil && !w.p.ended() {
		start := w.p.since()
		conn, err := pgx.ConnectConfig(context.Background(), w.p.conn)
		w.tries++
		if err == nil {
			w.conn = conn
			break
		}
		w.failedConnect(FailedConnect{Worker: w.number, Start: start, End: w.p.since()}, err)
		w.p.pause(w.p.config.ReconnectEvery)
	}
	return w.conn != nil
}

// failedConnect keeps the words of the first ones only: a client that hammers
// a dead server fails a hundred times a second.
func (w *worker) failedConnect(f FailedConnect, err error) {
	if len(w.failedConnects) < keptFailures {
		f.Err = err.Error()
	}
	w.failedConnects = append(w.failedConnects, f)
}

// transaction runs the next transaction and keeps what came of it.
func (w *worker) transaction() {
	seq := int64(len(w.done))
	// A deadline on the socket costs nothing; a context that can end costs a
	// goroutine for every call.
	start := w.p.since()
	_ = w.conn.PgConn().Conn().SetDeadline(time.Now().Add(w.p.config.TransactionTimeout))
	phase, err := w.send(seq)
	end := w.p.since()
	w.done = append(w.done, Transaction{Start: start, End: end, Failed: phase, Connects: w.tries})
	w.tries = 0
	if err == nil {
		w.p.acknowledged(end)
		return
	}
	f := Failure{Worker: w.number, Seq: seq, At: end, Phase: phase}
	if len(w.failures) < keptFailures {
		f.Err = err.Error()
	}
	w.failures = append(w.failures, f)
	w.disconnect()
}

// send returns the phase that failed, or None.
func (w *worker) send(seq int64) (Phase, error) {
	if w.p.config.Mode != Tx {
		return phaseOf(Insert, w.do("INSERT 0 1", w.insert, w.p.run, w.number, seq))
	}
	if err := w.do("BEGIN", "begin"); err != nil {
		return Begin, err
	}
	if err := w.do("INSERT 0 1", w.insert, w.p.run, w.number, seq); err != nil {
		return Insert, err
	}
	time.Sleep(w.p.config.Think)
	return phaseOf(Commit, w.do("COMMIT", "commit"))
}

func phaseOf(p Phase, err error) (Phase, error) {
	if err == nil {
		return None, nil
	}
	return p, err
}

// do runs sql and expects the answer want. The COMMIT of a transaction that has failed
// before is answered with ROLLBACK, without an error.
func (w *worker) do(want, sql string, args ...any) error {
	tag, err := w.conn.Exec(context.Background(), sql, args...)
	if err != nil {
		return err
	}
	return checkTag(tag, want)
}

func checkTag(tag pgconn.CommandTag, want string) error {
	if tag.String() != want {
		return fmt.Errorf("answered %q instead of %q", tag.String(), want)
	}
	return nil
}

func (w *worker) disconnect() {
	if w.conn == nil {
		return
	}
	closeSoon(w.conn)
	w.conn = nil
}

// closeSoon says goodbye, but not for long: a dead server does not answer.
func closeSoon(conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = conn.Close(ctx)
}
