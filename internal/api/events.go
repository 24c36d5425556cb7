package api

import (
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/go-chi/chi/v5"

	"controld/internal/api/gen"
	"controld/internal/operation"
)

// A client that takes longer than this to read one event is cut off.
const eventTimeout = 10 * time.Second

// followOperation streams what becomes of one operation. It begins with the
// operation as it stands, so that nothing is missed by who comes late or
// comes back, and ends when the operation has ended or the server stops.
func (s *Server) followOperation(w http.ResponseWriter, r *http.Request) {
	id := chi.URLParam(r, "id")
	// Subscribed first: what happens between the two is seen twice, not never.
	events, cancel := s.operations.Subscribe(id)
	defer cancel()
	rec, err := s.operations.Get(id)
	if err != nil {
		s.fail(w, r, unknownOperation(id, err))
		return
	}
	h := w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Accel-Buffering", "no") // proxies must not hold events back
	w.WriteHeader(http.StatusOK)
	if infoOf(r.Context()).method == http.MethodHead {
		return
	}
	stream := eventStream{w: w, controller: http.NewResponseController(w)}
	first := operation.Event{At: time.Now(), Type: operation.EventOperation, ID: rec.ID, Record: rec}
	if err := stream.send(first); err != nil || !rec.Open() {
		return
	}
	s.forward(r, stream, events)
}

func (s *Server) forward(r *http.Request, stream eventStream, events <-chan operation.Event) {
	beat := time.NewTicker(s.heartbeat)
	defer beat.Stop()
	for {
		var err error
		select {
		case ev, more := <-events:
			if !more {
				return
			}
			if err = stream.send(ev); err == nil && ev.Ended() {
				return
			}
		case <-beat.C:
			err = stream.write(": still here\n\n")
		case <-s.stopping:
			return
		case <-r.Context().Done():
			return
		}
		if err != nil {
			return // the client left
		}
	}
}

type eventStream struct {
	w          http.ResponseWriter
	controller *http.ResponseController
}

func (e eventStream) send(ev operation.Event) error {
	out := gen.OperationEvent{
		Seq: int64(ev.Seq), At: ev.At.UTC(), Type: ev.Type, Step: gen.Optional(ev.Step),
		OperationID: ev.ID, Progress: progressOf(ev.Progress),
	}
	if ev.Type != operation.EventProgress {
		op := operationOf(ev.Record)
		out.Operation = &op
	}
	data, err := json.Marshal(out)
	if err != nil {
		return fmt.Errorf("encode event: %w", err)
	}
	return e.write(fmt.Sprintf("id: %d\nevent: %s\ndata: %s\n\n", ev.Seq, ev.Type, data))
}

func (e eventStream) write(text string) error {
	// Writers of tests have no deadlines, which is no error.
	_ = e.controller.SetWriteDeadline(time.Now().Add(eventTimeout))
	if _, err := e.w.Write([]byte(text)); err != nil {
		return fmt.Errorf("send event: %w", err)
	}
	if err := e.controller.Flush(); err != nil {
		return fmt.Errorf("send event: %w", err)
	}
	return nil
}
