package runner

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"slices"
	"sync"
	"time"

	"controld/internal/job"
	"controld/internal/node/child"
)

// keptJobs is how many ended jobs are remembered that nobody has forgotten.
const keptJobs = 100

// errFull: there are more jobs than anybody runs who is sane.
var errFull = errors.New("too many jobs run")

// mostRunning bounds the jobs that run at once.
const mostRunning = 32

type jobs struct {
	cfg    Config
	reaper *child.Reaper
	log    *slog.Logger
	ctx    context.Context // ends with the init
	cancel context.CancelFunc

	mu      sync.Mutex
	byID    map[string]*running
	stopped bool
	wait    sync.WaitGroup
}

// running is a job, also after its end.
type running struct {
	spec    job.Spec
	process *child.Process
	ended   chan struct{} // closed when nothing of it is left
	end     chan string   // takes the reason to end it

	mu     sync.Mutex
	status job.Status
}

func newJobs(cfg Config, reaper *child.Reaper, log *slog.Logger) *jobs {
	ctx, cancel := context.WithCancel(context.Background())
	return &jobs{cfg: cfg, reaper: reaper, log: log, ctx: ctx, cancel: cancel, byID: map[string]*running{}}
}

// stop kills every job and starts no more.
func (j *jobs) stop() {
	j.mu.Lock()
	j.stopped = true
	j.mu.Unlock()
	j.cancel()
	j.wait.Wait()
}

func (j *jobs) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /jobs", func(w http.ResponseWriter, _ *http.Request) { answer(w, j.list()) })
	mux.HandleFunc("PUT /jobs/{id}", j.put)
	mux.HandleFunc("GET /jobs/{id}", j.get)
	mux.HandleFunc("DELETE /jobs/{id}", j.delete)
	return mux
}

func answer(w http.ResponseWriter, value any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(value) // who asked has gone
}

func (j *jobs) put(w http.ResponseWriter, r *http.Request) {
	var spec job.Spec
	if err := json.NewDecoder(io.LimitReader(r.Body, 1<<20)).Decode(&spec); err != nil {
		http.Error(w, "a job is expected: "+err.Error(), http.StatusBadRequest)
		return
	}
	s, err := j.start(r.PathValue("id"), spec)
	switch {
	case errors.Is(err, job.ErrOther):
		http.Error(w, err.Error(), http.StatusConflict)
	case errors.Is(err, errFull):
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
	case err != nil:
		http.Error(w, err.Error(), http.StatusBadRequest)
	default:
		answer(w, s)
	}
}

func (j *jobs) get(w http.ResponseWriter, r *http.Request) {
	found := j.find(r.PathValue("id"))
	if found == nil {
		http.Error(w, job.ErrUnknown.Error(), http.StatusNotFound)
		return
	}
	if r.URL.Query().Has("wait") {
		select {
		case <-found.ended:
		case <-r.Context().Done():
			return
		}
	}
	answer(w, found.snapshot())
}

func (j *jobs) delete(w http.ResponseWriter, r *http.Request) {
	id := r.PathValue("id")
	found := j.find(id)
	if found == nil {
		http.Error(w, job.ErrUnknown.Error(), http.StatusNotFound)
		return
	}
	found.endBecause("ended on request")
	select {
	case <-found.ended:
	case <-r.Context().Done():
		return
	}
	j.mu.Lock()
	delete(j.byID, id)
	j.mu.Unlock()
	w.WriteHeader(http.StatusNoContent)
}

func (j *jobs) find(id string) *running {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.byID[id]
}

func (j *jobs) list() []job.Status {
	j.mu.Lock()
	defer j.mu.Unlock()
	all := make([]job.Status, 0, len(j.byID))
	for _, r := range j.byID {
		s := r.snapshot()
		s.Stdout, s.Stderr = "", ""
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b job.Status) int { return a.StartedAt.Compare(b.StartedAt) })
	return all
}

// start starts a job, once.
func (j *jobs) start(id string, spec job.Spec) (job.Status, error) {
	if err := job.CheckID(id); err != nil {
		return job.Status{}, err
	}
	command, err := j.command(spec)
	if err != nil {
		return job.Status{}, err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if known := j.byID[id]; known != nil {
		if known.spec.Idle != spec.Idle || !slices.Equal(known.spec.Args, spec.Args) {
			return job.Status{}, job.ErrOther
		}
		return known.snapshot(), nil
	}
	if j.stopped {
		return job.Status{}, errors.New("the init is stopping")
	}
	if j.makeRoom() >= mostRunning {
		return job.Status{}, errFull
	}
	r, err := j.launch(id, spec, command)
	if err != nil {
		return job.Status{}, err
	}
	j.byID[id] = r
	return r.snapshot(), nil
}

// makeRoom forgets the oldest ended jobs beyond those that are kept, and counts those that
// run. j.mu is held.
func (j *jobs) makeRoom() (running int) {
	var ended []job.Status
	for _, r := range j.byID {
		if s := r.snapshot(); s.Running() {
			running++
		} else {
			ended = append(ended, s)
		}
	}
	slices.SortFunc(ended, func(a, b job.Status) int { return a.EndedAt.Compare(b.EndedAt) })
	for _, s := range ended[:max(0, len(ended)-keptJobs+1)] {
		delete(j.byID, s.ID)
	}
	return running
}

// command is what is executed for a job.
func (j *jobs) command(spec job.Spec) ([]string, error) {
	if len(spec.Args) == 0 || len(j.cfg.Programs[spec.Args[0]]) == 0 {
		return nil, fmt.Errorf("%q is no program that is run here", spec.Args)
	}
	if spec.Limit <= 0 || spec.Limit > job.LongestLimit {
		return nil, fmt.Errorf("limit %s: more than 0 and at most %s are allowed", spec.Limit, job.LongestLimit)
	}
	command := slices.Concat(j.cfg.Programs[spec.Args[0]], spec.Args[1:])
	if spec.Idle {
		command = append([]string{"/usr/bin/ionice", "-c", "3", "/usr/bin/chrt", "--idle", "0"}, command...)
	}
	return command, nil
}

// launch starts the process. Its output goes to pipes and not to files: a disk that is
// full must not keep a job from saying so.
func (j *jobs) launch(id string, spec job.Spec, command []string) (*running, error) {
	out, err := newOutput()
	if err != nil {
		return nil, err
	}
	said, err := newOutput()
	if err != nil {
		out.discard()
		return nil, err
	}
	process, err := j.reaper.Start(child.Spec{
		Path: command[0], Args: command[1:], Env: os.Environ(), Dir: "/", UID: j.cfg.UID, GID: j.cfg.GID, Session: true,
		Stdout: out.write, Stderr: said.write,
	})
	if err != nil {
		out.discard()
		said.discard()
		return nil, err
	}
	r := &running{
		spec: spec, process: process, ended: make(chan struct{}), end: make(chan string, 1),
		status: job.Status{ID: id, Args: spec.Args, StartedAt: time.Now().UTC()},
	}
	j.log.Info("job starts", "job", id, "args", spec.Args, "pid", process.PID)
	j.wait.Go(func() { j.follow(r, out, said) })
	return r, nil
}

// follow waits for the end of a job, or ends it, and for the end of all that it has left.
func (j *jobs) follow(r *running, out, said *output) {
	out.collect(j.cfg.KeptBytes)
	said.collect(j.cfg.KeptBytes)
	limit := time.NewTimer(r.spec.Limit)
	defer limit.Stop()
	why := ""
	select {
	case <-r.process.Done():
	case why = <-r.end:
	case <-limit.C:
		why = "it took longer than " + r.spec.Limit.String()
	case <-j.ctx.Done():
		why = "its container stopped"
	}
	if why != "" {
		r.process.KillTree()
		<-r.process.Done()
	}
	// Workers of a process that was killed live on, and hold its locks.
	left := r.process.KillSession()
	stdout, cutOut := out.all()
	stderr, cutSaid := said.all()
	r.mu.Lock()
	s := &r.status
	s.EndedAt, s.ExitCode, s.Ended = time.Now().UTC(), r.process.ExitCode(), why
	s.Stdout, s.Stderr, s.Cut = stdout, stderr, cutOut || cutSaid
	r.mu.Unlock()
	j.log.Info("job ended", "job", s.ID, "exit_code", s.ExitCode, "because", why, "left_behind", left)
	close(r.ended)
}

func (r *running) endBecause(why string) {
	select {
	case r.end <- why:
	default: // somebody else has asked
	}
}

func (r *running) snapshot() job.Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.status
}

// An output keeps the beginning of what a process writes.
type output struct {
	read, write *os.File
	done        chan struct{}
	kept        []byte
	cut         bool
}

func newOutput() (*output, error) {
	read, write, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	return &output{read: read, write: write, done: make(chan struct{})}, nil
}

func (o *output) discard() {
	_ = o.read.Close() // a pipe
	_ = o.write.Close()
}

// collect begins to read. The process has its own end of the pipe by now.
func (o *output) collect(most int64) {
	_ = o.write.Close() // a pipe
	go func() {
		defer close(o.done)
		defer o.read.Close()
		o.kept, _ = io.ReadAll(io.LimitReader(o.read, most)) // what was read before the pipe broke
		rest, _ := io.Copy(io.Discard, o.read)
		o.cut = rest > 0
	}()
}

// drainTime bounds the wait for the end of the output of processes that were killed: one
// that hangs in the kernel holds its end of the pipe.
const drainTime = 5 * time.Second

// all is what was said when every writer has ended.
func (o *output) all() (text string, cut bool) {
	select {
	case <-o.done:
	case <-time.After(drainTime):
		_ = o.read.SetReadDeadline(time.Now()) // which ends the reading
		<-o.done
	}
	return string(o.kept), o.cut
}
