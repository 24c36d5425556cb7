package probe

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
)

// An ID names one row: the worker that wrote it, and which of that worker's rows it is.
type ID struct{ Worker, Seq int64 }

// A Verdict holds what a server returned against what the clients were told.
type Verdict struct {
	Sent, Acked, Read int

	Lost    []ID // acknowledged, and not there
	Doubled []ID // there more than once
	Alien   []ID // there, and never sent, or sent in a transaction whose COMMIT was never sent

	Unknown     int // got an error after it may have been committed: may be there or not
	UnknownRead int // of these, there
}

// OK reports whether nothing is wrong.
func (v Verdict) OK() bool { return len(v.Lost)+len(v.Doubled)+len(v.Alien) == 0 }

// Err is nil when nothing is wrong.
func (v Verdict) Err() error {
	if v.OK() {
		return nil
	}
	return fmt.Errorf("of %d acknowledged and %d read rows: %s lost, %s there twice, %s never committed but there",
		v.Acked, v.Read, some(v.Lost), some(v.Doubled), some(v.Alien))
}

// some prints how many there are, and the first of them.
func some(ids []ID) string {
	const shown = 5
	var b strings.Builder
	fmt.Fprintf(&b, "%d", len(ids))
	for i, id := range ids[:min(shown, len(ids))] {
		b.WriteString([]string{" (", ", "}[min(i, 1)])
		fmt.Fprintf(&b, "%d:%d", id.Worker, id.Seq)
	}
	if len(ids) > shown {
		b.WriteString(", ...")
	}
	if len(ids) > 0 {
		b.WriteString(")")
	}
	return b.String()
}

// Check reads the run's rows from the server at dsn and judges them. A standby
// can be asked too, once it has replayed everything.
func (r *Report) Check(ctx context.Context, dsn string) (Verdict, error) {
	read, err := r.read(ctx, dsn)
	if err != nil {
		return Verdict{}, fmt.Errorf("read the probe's rows: %w", err)
	}
	return r.judge(read), nil
}

func (r *Report) read(ctx context.Context, dsn string) ([]ID, error) {
	config, err := parse(dsn)
	if err != nil {
		return nil, err
	}
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return nil, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	rows, err := conn.Query(ctx, "select worker, seq from "+pgx.Identifier{r.Config.Table}.Sanitize()+" where run = $1",
		pgx.QueryExecModeExec, r.Run)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByPos[ID])
}

// judge compares the rows that were read with the history.
func (r *Report) judge(read []ID) Verdict {
	v := Verdict{Read: len(read)}
	times := make(map[ID]int, len(read))
	for _, id := range read {
		times[id]++
		if times[id] == 2 {
			v.Doubled = append(v.Doubled, id)
		}
		if times[id] == 1 && !r.mayBeThere(id) {
			v.Alien = append(v.Alien, id)
		}
	}
	for worker, sent := range r.Transactions {
		v.Sent += len(sent)
		for seq, t := range sent {
			id := ID{int64(worker), int64(seq)}
			switch {
			case t.Failed == None:
				v.Acked++
				if times[id] == 0 {
					v.Lost = append(v.Lost, id)
				}
			case r.mayBeThere(id):
				v.Unknown++
				v.UnknownRead += min(times[id], 1)
			}
		}
	}
	return v
}

// mayBeThere reports whether a row was sent in a way that may have committed it.
// Without an explicit transaction the INSERT commits too.
func (r *Report) mayBeThere(id ID) bool {
	if id.Worker < 0 || id.Worker >= int64(len(r.Transactions)) {
		return false
	}
	sent := r.Transactions[id.Worker]
	if id.Seq < 0 || id.Seq >= int64(len(sent)) {
		return false
	}
	switch sent[id.Seq].Failed {
	case None, Commit:
		return true
	case Insert:
		return r.Config.Mode != Tx
	default:
		return false
	}
}
