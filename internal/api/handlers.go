package api

import (
	"context"
	"net/http"
	"strconv"
	"strings"
	"time"

	"controld/internal/api/gen"
	"controld/internal/cluster"
	"controld/internal/health"
)

// An answer is a finished response. The generated interfaces want a method for
// each operation; what they write is the same.
type answer struct {
	status  int
	body    any
	headers map[string]string
}

func (a answer) write(w http.ResponseWriter) error {
	for name, value := range a.headers {
		w.Header().Set(name, value)
	}
	writeJSON(w, a.status, a.body)
	return nil
}

func (a answer) VisitGetHealthResponse(w http.ResponseWriter) error       { return a.write(w) }
func (a answer) VisitGetLiveResponse(w http.ResponseWriter) error         { return a.write(w) }
func (a answer) VisitGetReadyResponse(w http.ResponseWriter) error        { return a.write(w) }
func (a answer) VisitGetClusterResponse(w http.ResponseWriter) error      { return a.write(w) }
func (a answer) VisitCheckPrimaryResponse(w http.ResponseWriter) error    { return a.write(w) }
func (a answer) VisitCheckReplicaResponse(w http.ResponseWriter) error    { return a.write(w) }
func (a answer) VisitStartNodeResponse(w http.ResponseWriter) error       { return a.write(w) }
func (a answer) VisitRejoinNodeResponse(w http.ResponseWriter) error      { return a.write(w) }
func (a answer) VisitStartFailoverResponse(w http.ResponseWriter) error   { return a.write(w) }
func (a answer) VisitStartFailbackResponse(w http.ResponseWriter) error   { return a.write(w) }
func (a answer) VisitListOperationsResponse(w http.ResponseWriter) error  { return a.write(w) }
func (a answer) VisitGetOperationResponse(w http.ResponseWriter) error    { return a.write(w) }
func (a answer) VisitCancelOperationResponse(w http.ResponseWriter) error { return a.write(w) }

// yesOrNo answers 200 or 503, which is all that a load balancer reads.
func yesOrNo(ok bool, body any) answer {
	if ok {
		return answer{status: http.StatusOK, body: body}
	}
	return answer{status: http.StatusServiceUnavailable, body: body}
}

// GetHealth says whether clients can write.
func (s *Server) GetHealth(context.Context, gen.GetHealthRequestObject) (gen.GetHealthResponseObject, error) {
	h := s.cluster.Health()
	return yesOrNo(h.Status != health.Down, healthOf(h)), nil
}

// GetLive says that the process answers.
func (s *Server) GetLive(context.Context, gen.GetLiveRequestObject) (gen.GetLiveResponseObject, error) {
	return answer{status: http.StatusOK, body: gen.Probe{Status: "ok"}}, nil
}

// GetReady says whether commands are taken.
func (s *Server) GetReady(context.Context, gen.GetReadyRequestObject) (gen.GetReadyResponseObject, error) {
	select {
	case <-s.stopping:
		return yesOrNo(false, gen.Probe{Status: "down", Reason: pointer("controld is stopping")}), nil
	default:
	}
	if s.cluster.View().At.IsZero() {
		return yesOrNo(false, gen.Probe{Status: "down", Reason: pointer("nothing was observed yet")}), nil
	}
	return yesOrNo(true, gen.Probe{Status: "ok"}), nil
}

// GetCluster shows the topology.
func (s *Server) GetCluster(context.Context, gen.GetClusterRequestObject) (gen.GetClusterResponseObject, error) {
	view, redis := s.cluster.View(), s.cluster.Redis()
	shown := clusterOf(view, redis, s.cluster.Describe(), s.cluster.Health().Operation, s.nodes)
	return answer{status: http.StatusOK, body: shown}, nil
}

// CheckPrimary says whether a node takes writes.
func (s *Server) CheckPrimary(_ context.Context, req gen.CheckPrimaryRequestObject) (gen.CheckPrimaryResponseObject, error) {
	if err := cluster.ValidateNode(req.Name, s.nodes); err != nil {
		return nil, err
	}
	ok, why := cluster.Writable(s.cluster.View(), req.Name, time.Now(), s.interval)
	return yesOrNo(ok, gen.NodeCheck{Name: req.Name, Ok: ok, Reason: gen.Optional(why)}), nil
}

// CheckReplica says whether a node serves reads as a standby.
func (s *Server) CheckReplica(_ context.Context, req gen.CheckReplicaRequestObject) (gen.CheckReplicaResponseObject, error) {
	if err := cluster.ValidateNode(req.Name, s.nodes); err != nil {
		return nil, err
	}
	maxLagBytes := int64(-1)
	if req.Params.Lag != nil {
		var err error
		if maxLagBytes, err = parseSize(*req.Params.Lag); err != nil {
			return nil, err
		}
	}
	ok, why := cluster.Readable(s.cluster.View(), req.Name, time.Now(), s.interval, maxLagBytes)
	return yesOrNo(ok, gen.NodeCheck{Name: req.Name, Ok: ok, Reason: gen.Optional(why)}), nil
}

// parseSize reads a size as PostgreSQL writes it: kB is 1024 bytes.
func parseSize(text string) (int64, error) {
	units := []struct {
		suffix string
		factor int64
	}{{"kB", 1 << 10}, {"MB", 1 << 20}, {"GB", 1 << 30}, {"B", 1}, {"", 1}}
	for _, u := range units {
		digits, found := strings.CutSuffix(text, u.suffix)
		if !found {
			continue
		}
		n, err := strconv.ParseInt(digits, 10, 64)
		if err != nil || n < 0 || n > (1<<62)/u.factor {
			break
		}
		return n * u.factor, nil
	}
	return 0, &requestError{kind: errBadRequest, field: "lag", allowed: "a number with B, kB, MB or GB",
		detail: "lag is no size; allowed: a number with B, kB, MB or GB, as 10MB"}
}
