package operation

// resources says which kinds of operation may not run beside which: two kinds
// that name the same resource exclude each other. This is the one place where
// that is written down. A rejoin does not touch what commits wait for: a dead
// synchronous standby is lifted while it is being brought back.
var resources = map[string][]string{
	"bootstrap": {"cluster", "commit"},
	"failover":  {"cluster", "commit"},
	"failback":  {"cluster", "commit"},
	"start":     {"cluster", "commit"},
	"rejoin":    {"cluster"},
	"align":     {"cluster"},
	"protect":   {"commit"},
}

// exclude reports whether operations of the kinds a and b exclude each other.
func exclude(a, b string) bool {
	for _, x := range resources[a] {
		for _, y := range resources[b] {
			if x == y {
				return true
			}
		}
	}
	return false
}
