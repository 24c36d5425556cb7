package api

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"controld"
	"controld/internal/api/apitest"
	"controld/internal/api/command"
	"controld/internal/cluster"
	"controld/internal/operation"
)

// moves is a capability with a command of its own, which moves the primary.
const movesPath = `
  /moves:
    post:
      operationId: startMove
      x-role: operator
      parameters:
        - $ref: "#/components/parameters/IdempotencyKey"
        - $ref: "#/components/parameters/Prefer"
      requestBody:
        content:
          application/json:
            schema: { type: object, additionalProperties: false, properties: { reason: { type: string } } }
      responses:
        default: { $ref: "#/components/responses/Problem" }
`

func moves(fake *apitest.Fake) command.Set {
	return func(kit command.Kit) []command.Route {
		return []command.Route{{Method: "POST", Path: "/moves", Handler: func(w http.ResponseWriter, r *http.Request) {
			var body struct{ Reason string }
			if r.ContentLength > 0 {
				if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
					kit.Fail(w, r, err)
					return
				}
			}
			if body.Reason == "none" {
				kit.Fail(w, r, operation.Refuse("no-candidate", nil, "nobody can lead"))
				return
			}
			kit.Run(w, r, func(ctx context.Context, by operation.Caller) (operation.Record, error) {
				return fake.Failover(ctx, cluster.FailoverRequest{Reason: body.Reason}, by)
			})
		}}}
	}
}

// A capability's command is behind all that guards the others, and answers as they do.
func TestCapability(t *testing.T) {
	tokens, err := NewTokens(map[Role]string{Viewer: viewerToken, Operator: operatorToken})
	if err != nil {
		t.Fatal(err)
	}
	fake := apitest.New()
	options := Options{
		Cluster: fake, Operations: fake, Tokens: tokens, Nodes: fake.Nodes(), Interval: apitest.Interval, Capabilities: served(fake),
		Log: slog.New(slog.DiscardHandler),
	}
	server, err := New(options)
	if err != nil {
		t.Fatal(err)
	}
	spec, err := loadSpec(bytes.Replace(controld.OpenAPI, []byte("\npaths:\n"), []byte("\npaths:"+movesPath), 1))
	if err != nil {
		t.Fatal(err)
	}
	routes := append(server.routes(http.NotFoundHandler()), server.capabilityRoutes(spec, []command.Set{moves(fake), fake.Backups})...)
	if server.handler, err = server.router(spec, routes); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, token, body string
		header            [2]string
		status            int
		says              string
	}{
		{"without a token", "", "", [2]string{}, 401, "unauthorized"},
		{"with too small a role", viewerToken, "", [2]string{}, 403, "forbidden"},
		{"with a field that is not there", operatorToken, `{"x": 1}`, [2]string{}, 400, "bad-request"},
		{"refused", operatorToken, `{"reason": "none"}`, [2]string{}, 409, "nobody can lead"},
		{"done", operatorToken, `{"reason": "told to"}`, [2]string{}, 200, "succeeded"},
		{"with a key", operatorToken, "", [2]string{"Idempotency-Key", "one"}, 200, "succeeded"},
	} {
		req := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/moves", strings.NewReader(tt.body))
		if tt.body != "" {
			req.Header.Set("Content-Type", "application/json")
		}
		if tt.token != "" {
			req.Header.Set("Authorization", "Bearer "+tt.token)
		}
		if tt.header[0] != "" {
			req.Header.Set(tt.header[0], tt.header[1])
		}
		w := httptest.NewRecorder()
		server.Handler().ServeHTTP(w, req)
		if w.Code != tt.status || !strings.Contains(w.Body.String(), tt.says) {
			t.Errorf("%s: %d %s", tt.name, w.Code, w.Body)
		}
	}
	options.Capabilities = append(served(fake), moves(fake))
	if _, err := New(options); err == nil || !strings.Contains(err.Error(), "/moves") {
		t.Errorf("a command that the contract does not have: %v", err)
	}
}
