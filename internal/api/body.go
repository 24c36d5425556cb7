package api

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"maps"
	"mime"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
)

const (
	maxJSONBytes = 1 << 20
	jsonType     = "application/json"
	// bodyTimeout is how long JSON may take to arrive, and how long a stream may
	// bring nothing.
	bodyTimeout = 30 * time.Second
)

// A bodyPolicy is what a command takes as its body: JSON, which is read whole
// and held against the contract, or a stream, which the command reads itself.
type bodyPolicy struct {
	streamTypes []string // the content types of a stream; none: it is JSON
	maxBytes    int64
}

func (p bodyPolicy) isStream() bool { return len(p.streamTypes) > 0 }

// bodyPolicyOf reads the policy off the contract. Only a requestBody of other
// content types than JSON makes a stream, and it has to name its bound: a
// command that says nothing takes JSON of at most 1 MiB.
func bodyPolicyOf(op *openapi3.Operation) (bodyPolicy, error) {
	policy := bodyPolicy{maxBytes: maxJSONBytes}
	if op.RequestBody == nil {
		return policy, nil
	}
	body := op.RequestBody.Value
	types := slices.Sorted(maps.Keys(body.Content))
	bound, bounded := body.Extensions["x-max-bytes"]
	if slices.Equal(types, []string{jsonType}) {
		if bounded {
			return policy, fmt.Errorf("x-max-bytes is for streams; JSON is bounded by %d", maxJSONBytes)
		}
		return policy, nil
	}
	for _, typ := range types {
		if typ == jsonType || strings.HasSuffix(typ, "+json") || typ == "text/plain" || typ == "application/x-www-form-urlencoded" {
			return policy, fmt.Errorf("%s is no stream: the generated code reads it whole", typ)
		}
	}
	size, ok := bound.(float64) // as every number of JSON
	if !ok || size < 1 || size != float64(int64(size)) {
		return policy, fmt.Errorf("a stream (%s) needs x-max-bytes, a number of bytes", strings.Join(types, ", "))
	}
	return bodyPolicy{streamTypes: types, maxBytes: int64(size)}, nil
}

// readJSON reads the whole body, bounded in size and time, before anything is
// done. One that says it is too large is refused unread.
func (s *Server) readJSON(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength > maxJSONBytes {
			w.Header().Set("Connection", "close")
			s.fail(w, r, &http.MaxBytesError{Limit: maxJSONBytes})
			return
		}
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxJSONBytes))
		if err != nil {
			s.fail(w, r, bodyError(err, "The body did not arrive within %s"))
			return
		}
		// curl -X POST sends no body; an editor's newline is none either. It
		// passes with any content type: curl sends the one of a form.
		body = bytes.TrimSpace(body)
		if err := checkJSON(r, body); err != nil {
			s.fail(w, r, err)
			return
		}
		digest := sha256.Sum256(body)
		infoOf(r.Context()).digest = digest[:]
		r.Body = io.NopCloser(bytes.NewReader(body))
		r.ContentLength = int64(len(body))
		next.ServeHTTP(w, r)
	})
}

// checkJSON refuses what is no JSON.
func checkJSON(r *http.Request, body []byte) error {
	if len(body) == 0 {
		return nil
	}
	if !json.Valid(body) {
		detail := "The body is no JSON"
		var probe any
		var syntax *json.SyntaxError
		if err := json.Unmarshal(body, &probe); errors.As(err, &syntax) {
			detail = fmt.Sprintf("The body is no JSON: %s, at byte %d of %d", syntax, syntax.Offset, len(body))
		}
		return &requestError{kind: errBadRequest, field: "body", detail: detail, allowed: "one JSON object"}
	}
	if r.Header.Get("Content-Type") == "" {
		r.Header.Set("Content-Type", jsonType)
	}
	return nil
}

// bodyError says why a body could not be read. slow is what to say when it took
// too long.
func bodyError(err error, slow string) error {
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return err
	case errors.Is(err, os.ErrDeadlineExceeded):
		return &requestError{kind: errSlowBody, detail: fmt.Sprintf(slow, bodyTimeout)}
	}
	return &requestError{kind: errBadRequest, field: "body", detail: "The body could not be read: " + err.Error()}
}

// openStream leaves the body to the command, bounded in size and in how long it
// may bring nothing. What its header says is refused unread; check holds the
// rest of the request against the contract.
func (s *Server) openStream(policy bodyPolicy, check func(http.Handler) http.Handler, command http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// net/http would hold an answer back until it has read some of a stream
		// that the command leaves unread. It does not where the connection ends.
		w.Header().Set("Connection", "close")
		digest, err := admitStream(r, policy)
		if err != nil {
			s.fail(w, r, err)
			return
		}
		infoOf(r.Context()).digest = digest
		controller := http.NewResponseController(w)
		body := &streamBody{
			ReadCloser: http.MaxBytesReader(w, r.Body, policy.maxBytes),
			controller: controller,
			announced:  digest,
			hash:       sha256.New(),
		}
		// The validator would read the whole body into memory, also where it is
		// told to leave it alone: for functions that authenticate by it.
		r.Body = http.NoBody
		check(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			// The client's time to read counts from the answer on.
			_ = controller.SetWriteDeadline(time.Time{})
			r.Body = body
			command.ServeHTTP(w, r)
			_ = controller.SetWriteDeadline(time.Now().Add(s.answerLimit()))
		})).ServeHTTP(w, r)
	})
}

// admitStream refuses what the header tells already. It returns the digest that
// is announced there.
func admitStream(r *http.Request, policy bodyPolicy) ([]byte, error) {
	given, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || !slices.Contains(policy.streamTypes, given) {
		allowed := strings.Join(policy.streamTypes, ", ")
		return nil, &requestError{kind: errContentType, field: "Content-Type", allowed: allowed,
			detail: fmt.Sprintf("The body's Content-Type must be %s: curl -X POST -H 'Content-Type: %s' -T FILE",
				strings.Join(policy.streamTypes, " or "), policy.streamTypes[0])}
	}
	// Nobody would unpack it.
	if encoding := r.Header.Get("Content-Encoding"); encoding != "" && !strings.EqualFold(encoding, "identity") {
		return nil, &requestError{kind: errContentType, field: "Content-Encoding", allowed: "identity",
			detail: "The body is taken as it comes: send it without a Content-Encoding"}
	}
	if r.ContentLength > policy.maxBytes {
		return nil, &http.MaxBytesError{Limit: policy.maxBytes}
	}
	digest, err := contentDigest(r)
	if err != nil {
		return nil, err
	}
	return digest, requireDigest(r, digest)
}

// A streamBody is a body that its command reads piece by piece. An error other
// than io.EOF says that the stream is not whole, and is what the command answers
// with.
type streamBody struct {
	io.ReadCloser // bounded in size
	controller    *http.ResponseController
	announced     []byte // its digest; nil: it is not checked
	hash          hash.Hash
}

// Read waits for the next bytes, however long the whole stream takes.
func (b *streamBody) Read(p []byte) (int, error) {
	_ = b.controller.SetReadDeadline(time.Now().Add(bodyTimeout))
	n, err := b.ReadCloser.Read(p)
	if b.announced != nil {
		b.hash.Write(p[:n])
	}
	switch {
	case err == nil:
		return n, nil
	case !errors.Is(err, io.EOF):
		return n, bodyError(err, "The body brought nothing for %s")
	}
	if got := b.hash.Sum(nil); b.announced != nil && !bytes.Equal(got, b.announced) {
		return n, digestMismatch(got)
	}
	return n, io.EOF
}
