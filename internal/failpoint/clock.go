package failpoint

import (
	"os"
	"strings"
	"time"
)

// Clock is a clock that can be set while the process runs: the file at path says how far it
// is ahead of the machine's, such as 26h or -1h. Without the file it is the machine's.
func Clock(path string) func() time.Time {
	return func() time.Time {
		text, err := os.ReadFile(path)
		if err != nil {
			return time.Now()
		}
		ahead, err := time.ParseDuration(strings.TrimSpace(string(text)))
		if err != nil {
			panic(err) // a test that is wrong
		}
		return time.Now().Add(ahead)
	}
}
