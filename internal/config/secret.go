package config

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
)

const hidden = "***"

// A Secret prints as ***, however it is printed.
type Secret string

// Reveal returns the secret itself, for the one place that needs it.
func (s Secret) Reveal() string { return string(s) }

func (s Secret) String() string { return hidden }

// GoString hides the secret from %#v.
func (s Secret) GoString() string { return hidden }

// Format hides the secret from every verb, also %x and %q.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(hidden)) }

// LogValue hides the secret from structured logs.
func (s Secret) LogValue() slog.Value { return slog.StringValue(hidden) }

// MarshalText hides the secret from JSON and YAML.
func (s Secret) MarshalText() ([]byte, error) { return []byte(hidden), nil }

// ReadSecret reads the file name in dir. Spaces and newlines at its end do not
// count: an editor adds them.
func ReadSecret(dir, name string) (Secret, error) {
	data, err := os.ReadFile(filepath.Join(dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("secret %s is missing in %s; make up generates it: %w", name, dir, err)
	}
	if err != nil {
		return "", fmt.Errorf("read secret %s: %w", name, err)
	}
	value := strings.TrimRight(string(data), " \t\r\n")
	if value == "" {
		return "", fmt.Errorf("secret %s in %s is empty; remove the file, make up generates it anew", name, dir)
	}
	return Secret(value), nil
}

// SecretNames are the files that controld reads.
var SecretNames = []string{
	"role_app", "role_controld", "role_pooler", "role_replicator", "role_rewind",
	"redis_password", "token_viewer", "token_operator", "token_admin",
}

// ReadSecrets reads all of SecretNames; the error names everything that is missing.
func ReadSecrets(dir string) (map[string]Secret, error) {
	secrets := make(map[string]Secret, len(SecretNames))
	var errs []error
	for _, name := range SecretNames {
		s, err := ReadSecret(dir, name)
		errs = append(errs, err)
		secrets[name] = s
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return secrets, nil
}
