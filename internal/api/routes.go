package api

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/go-chi/chi/v5"
	"github.com/swaggest/swgui/v5emb"

	"controld"
	"controld/internal/api/gen"
)

// open is the role of routes that need no token.
const open Role = ""

// A route is one command of the API, the least role that may call it, and what
// serves it.
type route struct {
	method, path string
	role         Role
	handler      http.HandlerFunc
}

// routes are all commands. The contract says the same: router fails where the
// two differ.
func (s *Server) routes(metrics http.Handler) []route {
	w := gen.ServerInterfaceWrapper{
		Handler: gen.NewStrictHandlerWithOptions(s, nil, gen.StrictHTTPServerOptions{
			RequestErrorHandlerFunc:  s.failRequest,
			ResponseErrorHandlerFunc: s.fail,
		}),
		ErrorHandlerFunc: s.failRequest,
	}
	const get, post = http.MethodGet, http.MethodPost
	return []route{
		{get, "/", open, s.getIndex},
		{get, "/health", open, w.GetHealth},
		{get, "/health/live", open, w.GetLive},
		{get, "/health/ready", open, w.GetReady},
		{get, "/cluster", Viewer, w.GetCluster},
		{get, "/nodes/{name}/primary", open, w.CheckPrimary},
		{get, "/nodes/{name}/replica", open, w.CheckReplica},
		{post, "/nodes/{name}/start", Operator, w.StartNode},
		{post, "/nodes/{name}/rejoin", Operator, w.RejoinNode},
		{post, "/failover", Operator, w.StartFailover},
		{post, "/failback", Operator, w.StartFailback},
		{get, "/operations", Viewer, w.ListOperations},
		{get, "/operations/{id}", Viewer, w.GetOperation},
		{get, "/operations/{id}/events", Viewer, s.followOperation},
		{post, "/operations/{id}/cancel", Operator, w.CancelOperation},
		{get, "/metrics", Viewer, metrics.ServeHTTP},
		{get, "/openapi.yaml", open, getOpenAPI},
		{get, "/docs", open, getDocs},
	}
}

// failRequest answers an error of the generated code that reads parameters:
// what the contract cannot say, such as a header that is sent twice.
func (s *Server) failRequest(w http.ResponseWriter, r *http.Request, err error) {
	e := &requestError{kind: errBadRequest, detail: err.Error()}
	var many *gen.TooManyValuesForParamError
	var form *gen.InvalidParamFormatError
	switch {
	case errors.As(err, &many):
		e.field, e.allowed = many.ParamName, "one value"
	case errors.As(err, &form):
		e.field = form.ParamName
	}
	s.fail(w, r, e)
}

// router puts the routes together, each behind what guards it: first the
// token, then the body's limits, then the contract.
func (s *Server) router(spec *openapi3.T, all []route) (http.Handler, error) {
	if err := agree(spec, all); err != nil {
		return nil, err
	}
	s.commands = commandsOf(spec, all)
	validateAll, validateHead := s.validator(spec, false), s.validator(spec, true)
	r := chi.NewRouter()
	r.Use(s.identify, s.logAccess, s.recoverPanics, s.boundTimes, headAsGet)
	for _, rt := range all {
		body, err := bodyPolicyOf(spec.Paths.Value(rt.path).GetOperation(rt.method))
		if err != nil {
			return nil, fmt.Errorf("openapi.yaml: body of %s %s: %w", rt.method, rt.path, err)
		}
		validate := validateAll
		if body.isStream() {
			validate = validateHead
		}
		check := func(next http.Handler) http.Handler {
			return s.refuseUnknownQuery(queryParameters(spec, rt), validate(next))
		}
		var h http.Handler
		if body.isStream() {
			h = s.openStream(body, check, rt.handler)
		} else {
			h = s.readJSON(check(rt.handler))
		}
		if rt.role != open {
			h = s.requireRole(rt.role, h)
		}
		r.Method(rt.method, rt.path, h)
	}
	// The files of the page at /docs, all of them embedded.
	r.Method(http.MethodGet, "/docs/*", docsPage)
	r.NotFound(func(w http.ResponseWriter, req *http.Request) {
		s.fail(w, req, &requestError{kind: errNoRoute, detail: fmt.Sprintf("There is no %s; GET / lists the commands", req.URL.Path)})
	})
	r.MethodNotAllowed(func(w http.ResponseWriter, req *http.Request) {
		allowed := allowedMethods(r, req.URL.Path)
		w.Header().Set("Allow", allowed)
		s.fail(w, req, &requestError{kind: errNoMethod, allowed: allowed,
			detail: fmt.Sprintf("%s does not know %s; allowed: %s", req.URL.Path, infoOf(req.Context()).method, allowed)})
	})
	return r, nil
}

func allowedMethods(r chi.Router, path string) string {
	var methods []string
	for _, m := range []string{http.MethodGet, http.MethodPost, http.MethodDelete, http.MethodPut, http.MethodPatch} {
		if r.Match(chi.NewRouteContext(), m, path) {
			methods = append(methods, m)
		}
	}
	if slices.Contains(methods, http.MethodGet) {
		methods = append(methods, http.MethodHead)
	}
	return strings.Join(methods, ", ")
}

// agree holds the routes and the contract against each other, also in who may
// call what.
func agree(spec *openapi3.T, routes []route) error {
	served := map[string]Role{}
	for _, rt := range routes {
		served[rt.method+" "+rt.path] = rt.role
	}
	for path, item := range spec.Paths.Map() {
		for method, op := range item.Operations() {
			if method == http.MethodHead {
				continue // served as GET
			}
			role, ok := served[method+" "+path]
			if !ok {
				return fmt.Errorf("openapi.yaml: nothing serves %s %s", method, path)
			}
			if role != roleOf(op) {
				return fmt.Errorf("openapi.yaml: %s %s is for role %q there and %q here", method, path, roleOf(op), role)
			}
			delete(served, method+" "+path)
		}
	}
	for name := range served {
		return fmt.Errorf("openapi.yaml: %s is served and not described", name)
	}
	return nil
}

// roleOf reads the role off an operation of the contract. One that is neither
// open nor has a role is the admin's.
func roleOf(op *openapi3.Operation) Role {
	if op.Security != nil && len(*op.Security) == 0 {
		return open
	}
	if role, ok := op.Extensions["x-role"].(string); ok {
		return Role(role)
	}
	return Admin
}

func queryParameters(spec *openapi3.T, rt route) []string {
	item := spec.Paths.Value(rt.path)
	var names []string
	for _, p := range slices.Concat(item.Parameters, item.GetOperation(rt.method).Parameters) {
		if p.Value.In == openapi3.ParameterInQuery {
			names = append(names, p.Value.Name)
		}
	}
	return names
}

func getOpenAPI(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/yaml")
	_, _ = w.Write(controld.OpenAPI) // a client that left is no error
}

var docsPage = v5emb.New("controld", "/openapi.yaml", "/docs/")

func getDocs(w http.ResponseWriter, r *http.Request) { docsPage.ServeHTTP(w, r) }
