package pgbackrest

import (
	"strings"

	"controld/internal/backup"
)

// kinds are what pgBackRest's exit codes come to (its error.yaml, and what each was seen
// for). A code that is not here has no explanation.
var kinds = map[int]backup.FailureKind{
	27:  backup.FailureSetup,     // no primary in its configuration
	31:  backup.FailureSetup,     // an option is not valid
	32:  backup.FailureSetup,     // an option has no valid value
	37:  backup.FailureSetup,     // an option is missing
	38:  backup.FailureSetup,     // the server runs
	39:  backup.FailureEnded,     // a worker was lost
	41:  backup.FailureSetup,     // a file cannot be opened: rights
	49:  backup.FailureNotReady,  // a server does not answer in its protocol
	50:  backup.FailureLocked,    // another one has the lock
	51:  backup.FailureOther,     // the repository is of another cluster
	55:  backup.FailureUnchanged, // only where the text says so, see kind
	56:  backup.FailureNotReady,  // no primary, or more than one, see kind
	57:  backup.FailureNotReady,  // a query failed
	58:  backup.FailureNotReady,  // the control file says otherwise, for a moment after a promotion
	62:  backup.FailureEnded,     // a stop file
	63:  backup.FailureEnded,     // SIGTERM
	64:  backup.FailureFull,      // a file cannot be written
	67:  backup.FailureSetup,     // archive_mode
	68:  backup.FailureSetup,     // archive_command
	75:  backup.FailureMissing,   // no such backup
	82:  backup.FailureNotReady,  // WAL did not arrive in time
	87:  backup.FailureSetup,     // archive_mode is off
	103: backup.FailureNotReady,  // no stanza yet, or a repository that does not answer
	104: backup.FailureSetup,     // nothing in the repository could be expired
	106: backup.FailureLabel,
	125: backup.FailureNotReady, // anything of a host that has gone
}

// kind says what a failure is.
func kind(code int, said string) backup.FailureKind {
	switch {
	case code > 128:
		return backup.FailureEnded // by a signal
	case code == 55 && !strings.Contains(said, "no files have changed"):
		return backup.FailureSetup // a file is missing
	case code == 56 && strings.Contains(said, "more than one primary"):
		return backup.FailureTwoPrimary
	case strings.Contains(said, "No space left on device"):
		return backup.FailureFull
	}
	if k, known := kinds[code]; known {
		return k
	}
	return backup.FailureUnexplained
}
