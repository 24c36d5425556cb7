package api

import (
	_ "embed"
	"encoding/json"
	"html/template"
	"net/http"
	"strings"

	"github.com/getkin/kin-openapi/openapi3"

	"controld/internal/api/gen"
)

type commandList []gen.Command

// commandsOf lists the commands in the order of the routes.
func commandsOf(spec *openapi3.T, routes []route) commandList {
	var list commandList
	for _, rt := range routes {
		op := spec.Paths.Value(rt.path).GetOperation(rt.method)
		list = append(list, gen.Command{Method: rt.method, Path: rt.path, Summary: op.Summary, Role: gen.Optional(string(rt.role))})
	}
	return list
}

//go:embed index.html
var indexText string

var indexPage = template.Must(template.New("index").Parse(indexText))

// getIndex lists the commands, as a page for a browser.
func (s *Server) getIndex(w http.ResponseWriter, r *http.Request) {
	index := gen.Index{Name: "controld", Version: s.version, Commands: s.commands}
	w.Header().Set("Vary", "Accept")
	if !prefersHTML(infoOf(r.Context()).accept) {
		writeJSON(w, http.StatusOK, index)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
	if err := indexPage.Execute(w, index); err != nil {
		s.log.WarnContext(r.Context(), "index page was not sent", "err", err)
	}
}

// prefersHTML reports whether text/html stands in Accept before any JSON, as
// browsers write it. Weights are not weighed: no browser needs it.
func prefersHTML(accept string) bool {
	html := strings.Index(accept, "text/html")
	asJSON := strings.Index(accept, "application/json")
	return html >= 0 && (asJSON < 0 || html < asJSON)
}

func writeJSON(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	_ = enc.Encode(body) // a client that left is no error
}
