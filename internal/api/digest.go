package api

import (
	"crypto/sha256"
	"encoding/base64"
	"net/http"
	"strings"
)

const (
	digestForm = "sha-256=:BASE64:"
	digestHint = "Send the body's SHA-256 as Content-Digest: " + digestForm + ", for a file: openssl dgst -sha256 -binary FILE | base64"
)

// contentDigest returns what the request says its body's SHA-256 is (RFC 9530);
// nil: nothing. One that cannot be checked is refused: who sends it counts on it.
func contentDigest(r *http.Request) ([]byte, error) {
	lines, sent := r.Header["Content-Digest"]
	if !sent {
		return nil, nil
	}
	for member := range strings.SplitSeq(strings.Join(lines, ","), ",") {
		value, found := strings.CutPrefix(strings.TrimSpace(member), "sha-256=:")
		if !found {
			continue // of another algorithm
		}
		encoded, closed := strings.CutSuffix(value, ":")
		digest, err := base64.StdEncoding.DecodeString(encoded)
		if closed && err == nil && len(digest) == sha256.Size {
			return digest, nil
		}
	}
	return nil, &requestError{kind: errBadRequest, field: "Content-Digest", allowed: digestForm,
		detail: "Content-Digest holds no SHA-256 in its form. " + digestHint}
}

// requireDigest refuses an Idempotency-Key that nothing could be bound to: a
// stream is not read to learn whether it is the one that came before.
func requireDigest(r *http.Request, digest []byte) error {
	if _, keyed := r.Header["Idempotency-Key"]; !keyed || digest != nil {
		return nil
	}
	return &requestError{kind: errBadRequest, field: "Content-Digest", allowed: digestForm,
		detail: "An Idempotency-Key is bound to the body, of which a stream tells nothing before it was read. " + digestHint}
}

// digestMismatch is how a stream ends that is not the one that was announced.
func digestMismatch(got []byte) error {
	return &requestError{kind: errWrongDigest, field: "Content-Digest",
		detail: "What arrived is not what Content-Digest says, but sha-256=:" + base64.StdEncoding.EncodeToString(got) +
			":. Send the whole body again, under a new Idempotency-Key if it has one"}
}
