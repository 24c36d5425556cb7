package failpoint

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// errLost is what a call returns whose answer was lost after its effect.
var errLost = errors.New("the answer was lost")

// FromFile is a hook that is set from outside while the process runs: the file
// at path holds "CALL WHEN" or "CALL WHEN N", for the Nth such call from now on
// (the first without N), and is removed when that call comes. WHEN is
// before (killed before the call), after (killed after its effect), lost (the
// effect happens, the answer is an error) or hang (stopped after its effect,
// until somebody continues or kills the process).
func FromFile(path string) Hook {
	var mu sync.Mutex
	return func(call string, do func() error) error {
		mu.Lock()
		when := armed(path, call)
		mu.Unlock()
		if when == "before" {
			kill(syscall.SIGKILL)
		}
		err := do()
		switch when {
		case "after":
			kill(syscall.SIGKILL)
		case "hang":
			kill(syscall.SIGSTOP)
		case "lost":
			return errLost
		}
		return err
	}
}

// armed returns when to act at this call, and disarms; "" for not now.
func armed(path, call string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	var name, when string
	left := 1
	if n, _ := fmt.Sscan(string(data), &name, &when, &left); n < 2 || name != call {
		return ""
	}
	if left > 1 {
		if err := os.WriteFile(path, fmt.Appendf(nil, "%s %s %d", name, when, left-1), 0o600); err != nil {
			panic(err)
		}
		return ""
	}
	if err := os.Remove(path); err != nil {
		panic(err)
	}
	fmt.Fprintf(os.Stderr, "failpoint: %s %s\n", call, when)
	return when
}

// kill ends or stops this very process, at once. The signal goes to the calling
// thread: one to the process is taken up by any thread, and this one could make
// its next call meanwhile.
func kill(sig syscall.Signal) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Tgkill(os.Getpid(), unix.Gettid(), sig); err != nil {
		panic(err)
	}
	if sig == syscall.SIGKILL {
		select {} // the signal is on its way
	}
}
