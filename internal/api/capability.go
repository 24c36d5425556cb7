package api

import (
	"net/http"

	"github.com/getkin/kin-openapi/openapi3"

	"controld/internal/api/command"
)

// A kit is what the commands of capabilities answer with.
type kit struct{ s *Server }

var _ command.Kit = kit{}

func (k kit) Run(w http.ResponseWriter, r *http.Request, start command.Start) {
	a, err := k.s.run(r.Context(), header(r, "Prefer"), header(r, "Idempotency-Key"), start)
	if err != nil {
		k.s.fail(w, r, err)
		return
	}
	_ = a.write(w) // a client that left is no error
}

func (k kit) JSON(w http.ResponseWriter, status int, value any) { writeJSON(w, status, value) }

func (k kit) Fail(w http.ResponseWriter, r *http.Request, err error) { k.s.fail(w, r, err) }

// header is nil where the request has none of that name.
func header(r *http.Request, name string) *string {
	if len(r.Header.Values(name)) == 0 {
		return nil
	}
	value := r.Header.Get(name)
	return &value
}

// capabilityRoutes are the routes of capabilities, for whom the contract names. One that
// it does not have is refused with all others that differ from it.
func (s *Server) capabilityRoutes(spec *openapi3.T, sets []command.Set) (routes []route) {
	for _, set := range sets {
		for _, c := range set(kit{s}) {
			role := Admin
			if item := spec.Paths.Value(c.Path); item != nil && item.GetOperation(c.Method) != nil {
				role = roleOf(item.GetOperation(c.Method))
			}
			routes = append(routes, route{c.Method, c.Path, role, c.Handler})
		}
	}
	return routes
}
