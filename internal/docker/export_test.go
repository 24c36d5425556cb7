package docker

// HideProcesses makes the engine see none of the host's processes, as where
// controld runs without pid: host.
func (e *Engine) HideProcesses(emptyDir string) { e.procs.root = emptyDir }
