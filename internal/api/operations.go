package api

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"

	"controld/internal/api/command"
	"controld/internal/api/gen"
	"controld/internal/cluster"
	"controld/internal/operation"
)

// StartFailover answers with the finished operation, or with 202 when the
// caller prefers that or the operation outlasts the wait.
func (s *Server) StartFailover(ctx context.Context, req gen.StartFailoverRequestObject) (gen.StartFailoverResponseObject, error) {
	r := failoverRequest(req.Body)
	if req.Body != nil && gen.Value(req.Body.DryRun) {
		return planned(s.cluster.Plan(ctx, r))
	}
	p := req.Params
	return s.run(ctx, p.Prefer, p.IdempotencyKey, func(ctx context.Context, by operation.Caller) (operation.Record, error) {
		return s.cluster.Failover(ctx, r, by)
	})
}

func failoverRequest(body *gen.FailoverRequest) cluster.FailoverRequest {
	if body == nil {
		return cluster.FailoverRequest{Mode: cluster.ModeAuto}
	}
	r := cluster.FailoverRequest{
		Target: gen.Value(body.Target), Mode: string(gen.Value(body.Mode)), Reason: gen.Value(body.Reason),
		ExpectedPrimary: gen.Value(body.ExpectedPrimary), MaxLossBytes: body.MaxLossBytes, CancelRunning: gen.Value(body.CancelRunning),
	}
	if r.Mode == "" {
		r.Mode = cluster.ModeAuto
	}
	return r
}

// StartFailback is a failover to the preferred primary.
func (s *Server) StartFailback(ctx context.Context, req gen.StartFailbackRequestObject) (gen.StartFailbackResponseObject, error) {
	var r cluster.FailbackRequest
	if req.Body != nil {
		r = cluster.FailbackRequest{Reason: gen.Value(req.Body.Reason), CancelRunning: gen.Value(req.Body.CancelRunning)}
	}
	if req.Body != nil && gen.Value(req.Body.DryRun) {
		return planned(s.cluster.PlanFailback(ctx, r))
	}
	p := req.Params
	return s.run(ctx, p.Prefer, p.IdempotencyKey, func(ctx context.Context, by operation.Caller) (operation.Record, error) {
		return s.cluster.Failback(ctx, r, by)
	})
}

// StartNode starts a node in its recorded role.
func (s *Server) StartNode(ctx context.Context, req gen.StartNodeRequestObject) (gen.StartNodeResponseObject, error) {
	r := cluster.NodeRequest{Node: req.Name}
	if req.Body != nil {
		r.Reason, r.CancelRunning = gen.Value(req.Body.Reason), gen.Value(req.Body.CancelRunning)
	}
	p := req.Params
	return s.run(ctx, p.Prefer, p.IdempotencyKey, func(ctx context.Context, by operation.Caller) (operation.Record, error) {
		return s.cluster.StartNode(ctx, r, by)
	})
}

// RejoinNode makes a node a standby again.
func (s *Server) RejoinNode(ctx context.Context, req gen.RejoinNodeRequestObject) (gen.RejoinNodeResponseObject, error) {
	r := cluster.NodeRequest{Node: req.Name}
	if req.Body != nil {
		r.Method, r.Reason, r.CancelRunning = string(gen.Value(req.Body.Method)), gen.Value(req.Body.Reason),
			gen.Value(req.Body.CancelRunning)
	}
	p := req.Params
	return s.run(ctx, p.Prefer, p.IdempotencyKey, func(ctx context.Context, by operation.Caller) (operation.Record, error) {
		return s.cluster.Rejoin(ctx, r, by)
	})
}

// planned answers a dry run, also one that says that it would be refused.
func planned(p cluster.Plan, err error) (answer, error) {
	if err != nil {
		return answer{}, err
	}
	return answer{status: http.StatusOK, body: planOf(p)}, nil
}

// run starts an operation and waits for it. The start is not bound to the
// connection: a client that leaves changes nothing.
func (s *Server) run(ctx context.Context, prefer, key *string, start command.Start) (answer, error) {
	p := parsePrefer(gen.Value(prefer), s.waitLimit)
	startCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.waitLimit)
	defer cancel()
	began := time.Now()
	rec, err := start(startCtx, caller(ctx, key))
	if err != nil {
		return answer{}, withRecord(err, rec)
	}
	if rec.State == operation.Running && !p.async {
		waitCtx, cancel := context.WithDeadline(ctx, began.Add(p.wait))
		defer cancel()
		if rec, err = s.wait(waitCtx, rec); err != nil {
			return answer{}, err
		}
	}
	return finished(rec, p.async)
}

// wait returns the operation as it stands when it has ended or ctx has.
func (s *Server) wait(ctx context.Context, rec operation.Record) (operation.Record, error) {
	ended, err := s.operations.Wait(ctx, rec.ID)
	switch {
	case err == nil:
		return ended, nil
	case ctx.Err() != nil:
		return s.operations.Get(rec.ID)
	}
	return rec, err
}

// withRecord adds the operation's record to the refusal that ended it.
func withRecord(err error, rec operation.Record) error {
	var refusal *operation.Problem
	if errors.As(err, &refusal) && rec.ID != "" {
		if rec.Problem == nil {
			rec.Problem = refusal
		}
		return &operationError{record: rec}
	}
	return err
}

// finished is the answer to whoever started the operation.
func finished(rec operation.Record, async bool) (answer, error) {
	a := answer{status: http.StatusOK, body: operationOf(rec), headers: map[string]string{"Location": "/operations/" + rec.ID}}
	switch {
	case rec.State == operation.Succeeded:
		return a, nil
	case rec.State == operation.Running:
		a.status = http.StatusAccepted
		if async {
			a.headers["Preference-Applied"] = "respond-async"
		}
		return a, nil
	}
	return answer{}, &operationError{record: rec}
}

// caller is who asks, with the key that makes a repeated request join the first.
func caller(ctx context.Context, key *string) operation.Caller {
	i := infoOf(ctx)
	by := operation.Caller{Name: i.caller, Kind: operation.Person}
	if key != nil {
		path := i.path
		if i.query != "" {
			path += "?" + i.query // what a stream is for is not said in its body
		}
		by.Idempotency = &operation.Idempotency{Key: *key, Caller: i.caller, Method: i.method, Path: path, Body: i.digest}
	}
	return by
}

type preference struct {
	async bool
	wait  time.Duration
}

// parsePrefer reads RFC 7240. What it does not know is ignored, as that says.
func parsePrefer(header string, limit time.Duration) preference {
	p := preference{wait: limit}
	for part := range strings.SplitSeq(header, ",") {
		token, _, _ := strings.Cut(part, ";")
		name, arg, _ := strings.Cut(token, "=")
		switch strings.ToLower(strings.TrimSpace(name)) {
		case "respond-async":
			p.async = true
		case "wait":
			seconds, err := strconv.Atoi(strings.Trim(strings.TrimSpace(arg), `"`))
			if err == nil && seconds >= 0 && seconds <= int(limit/time.Second) {
				p.wait = time.Duration(seconds) * time.Second
			}
		}
	}
	return p
}

// ListOperations shows one page of the audit.
func (s *Server) ListOperations(_ context.Context, req gen.ListOperationsRequestObject) (gen.ListOperationsResponseObject, error) {
	p := req.Params
	recs, next, err := s.operations.List(operation.Filter{
		Kind: gen.Value(p.Kind), State: operation.State(gen.Value(p.State)), Limit: gen.Value(p.Limit), After: gen.Value(p.After),
	})
	if err != nil {
		return nil, err
	}
	list := gen.OperationList{Operations: []gen.Operation{}, Next: gen.Optional(next)}
	for _, rec := range recs {
		list.Operations = append(list.Operations, operationOf(rec))
	}
	return answer{status: http.StatusOK, body: list}, nil
}

// GetOperation shows one.
func (s *Server) GetOperation(_ context.Context, req gen.GetOperationRequestObject) (gen.GetOperationResponseObject, error) {
	rec, err := s.operations.Get(req.ID)
	if err != nil {
		return nil, unknownOperation(req.ID, err)
	}
	return answer{status: http.StatusOK, body: operationOf(rec)}, nil
}

// CancelOperation asks one to stop, and waits until it has.
func (s *Server) CancelOperation(ctx context.Context, req gen.CancelOperationRequestObject) (gen.CancelOperationResponseObject, error) {
	waitCtx, cancel := context.WithTimeout(ctx, s.waitLimit)
	defer cancel()
	rec, err := s.operations.Cancel(waitCtx, req.ID, caller(ctx, nil))
	if err != nil {
		return nil, unknownOperation(req.ID, err)
	}
	a := answer{status: http.StatusOK, body: operationOf(rec), headers: map[string]string{"Location": "/operations/" + rec.ID}}
	if rec.Open() {
		a.status = http.StatusAccepted
	}
	return a, nil
}

func unknownOperation(id string, err error) error {
	if errors.Is(err, operation.ErrNotFound) {
		return &requestError{kind: operation.ErrNotFound, field: "id",
			detail: "There is no operation " + strconv.Quote(id) + "; GET /operations lists them"}
	}
	return err
}
