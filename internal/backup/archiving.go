package backup

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"controld/internal/cluster"
)

// Archiving is whether WAL is archived, and by which command. It is turned on once, when
// the repository is there to take it, and stays on: a repository that is away makes the
// command fail, and WAL stays on the primary until it is back. Before that WAL waits, too,
// but where it could never be archived.
type Archiving struct {
	command string
	facts   cluster.Facts
	able    func(cluster.Node) bool

	mu   sync.Mutex
	fact archivingFact
}

type archivingFact struct {
	SystemID uint64    `json:"system_id"` // of the cluster whose repository takes WAL; 0: none does
	Since    time.Time `json:"since"`
	// Conflicts are segments of which the archive has others than the servers wrote.
	Conflicts []Segment `json:"conflicts,omitempty"`
}

const archivingFactName = "archiving"

// Commands of a server that archives nothing. NotArchived drops its WAL; with notYet it is
// kept until there is another command.
const (
	NotArchived = "/bin/true"
	notYet      = ""
)

// NewArchiving reads what was decided before. able reports whether a node's container has
// what command needs: it is false only where that is known.
func NewArchiving(command string, facts cluster.Facts, able func(cluster.Node) bool) (*Archiving, error) {
	a := &Archiving{command: command, facts: facts, able: able}
	_, err := facts.Fact(archivingFactName, &a.fact)
	return a, err
}

// Command is the archive_command of a node that leads.
func (a *Archiving) Command(n cluster.Node) string {
	a.mu.Lock()
	on := a.fact.SystemID != 0
	a.mu.Unlock()
	switch {
	case !a.able(n):
		return NotArchived
	case on:
		return a.command
	}
	return notYet
}

// on reports whether WAL of the cluster systemID is archived.
func (a *Archiving) on(systemID uint64) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return systemID != 0 && a.fact.SystemID == systemID
}

// since is when WAL of the present cluster was first archived: there are backups since then.
// The zero time: it is not yet.
func (a *Archiving) since() time.Time {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.fact.Since
}

// turnOn has WAL of the cluster systemID archived from now on.
func (a *Archiving) turnOn(systemID uint64) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	fact := archivingFact{SystemID: systemID, Since: time.Now().UTC()}
	if err := a.facts.PutFact(archivingFactName, fact); err != nil {
		return fmt.Errorf("turn archiving on: %w", err)
	}
	a.fact = fact
	return nil
}

// conflicts are segments of which the archive has others than the servers wrote.
func (a *Archiving) conflicts() []Segment {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.fact.Conflicts)
}

func (a *Archiving) noteConflict(s Segment) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	fact := a.fact
	fact.Conflicts = append(slices.Clone(fact.Conflicts), s)
	if err := a.facts.PutFact(archivingFactName, fact); err != nil {
		return fmt.Errorf("note a conflict in the archive: %w", err)
	}
	a.fact = fact
	return nil
}
