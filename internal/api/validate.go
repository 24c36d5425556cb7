package api

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	validation "github.com/oapi-codegen/nethttp-middleware"
)

// loadSpec reads a contract: that which is served and obeyed is controld.OpenAPI.
func loadSpec(contract []byte) (*openapi3.T, error) {
	spec, err := openapi3.NewLoader().LoadFromData(contract)
	if err != nil {
		return nil, fmt.Errorf("openapi.yaml: %w", err)
	}
	if err := spec.Validate(context.Background()); err != nil {
		return nil, fmt.Errorf("openapi.yaml: %w", err)
	}
	return spec, nil
}

// validator holds each request against the contract; without its body where
// that is a stream, for it reads bodies whole.
func (s *Server) validator(spec *openapi3.T, withoutBody bool) func(http.Handler) http.Handler {
	return validation.OapiRequestValidatorWithOptions(spec, &validation.Options{
		Options: openapi3filter.Options{
			AuthenticationFunc:  openapi3filter.NoopAuthenticationFunc, // requireRole has done it
			SkipSettingDefaults: true,
			ExcludeRequestBody:  withoutBody,
		},
		DiscardValidatedValue: true,
		ErrorHandlerWithOpts: func(_ context.Context, err error, w http.ResponseWriter, r *http.Request, _ validation.ErrorHandlerOpts) {
			s.fail(w, r, validationError(err))
		},
	})
}

// refuseUnknownQuery: a parameter that nobody reads is a misunderstanding, as
// in /failover?dry_run=true, which is a field of the body.
func (s *Server) refuseUnknownQuery(known []string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for _, name := range slices.Sorted(maps.Keys(r.URL.Query())) {
			if !slices.Contains(known, name) {
				s.fail(w, r, &requestError{kind: errBadRequest, field: name,
					detail:  fmt.Sprintf("There is no query parameter %q here", name),
					allowed: orNone(known)})
				return
			}
		}
		next.ServeHTTP(w, r)
	})
}

func orNone(names []string) string {
	if len(names) == 0 {
		return "no query parameter; fields go into the JSON body"
	}
	return strings.Join(names, ", ")
}

// validationError says which field is wrong and what is allowed there. Values
// are left out: a secret may have slipped into a wrong field.
func validationError(err error) error {
	var bad *openapi3filter.RequestError
	if !errors.As(err, &bad) {
		return fmt.Errorf("validate: %w", err)
	}
	e := &requestError{kind: errBadRequest, field: "body"}
	if bad.Parameter != nil {
		e.field = bad.Parameter.Name
		e.allowed = allowedBy(bad.Parameter.Schema.Value)
	} else if strings.Contains(bad.Reason, "Content-Type") {
		return &requestError{kind: errContentType, field: "Content-Type", allowed: "application/json",
			detail: "The body's Content-Type must be application/json: curl -H 'Content-Type: application/json' -d '{...}', or curl --json"}
	}
	var schema *openapi3.SchemaError
	if !errors.As(bad.Err, &schema) {
		e.detail = e.field + ": " + reasonOf(bad) + allowedSuffix(e.allowed)
		return e
	}
	if path := schema.JSONPointer(); len(path) > 0 {
		e.field = strings.Join(path, ".")
	}
	e.allowed = allowedBy(schema.Schema)
	if name, unknown := unknownProperty(schema); unknown {
		e.field = name
		e.detail = fmt.Sprintf("There is no field %q here; allowed: %s", name, e.allowed)
		return e
	}
	reason := schema.Reason
	if schema.SchemaField == "enum" {
		reason = "this value is not known" // the library's reason lists them in its own way
	}
	e.detail = fmt.Sprintf("%s: %s%s", e.field, reason, allowedSuffix(e.allowed))
	return e
}

func reasonOf(bad *openapi3filter.RequestError) string {
	switch {
	case bad.Err != nil && bad.Reason != "":
		return bad.Reason + ": " + bad.Err.Error()
	case bad.Err != nil:
		return bad.Err.Error()
	}
	return bad.Reason
}

func allowedSuffix(allowed string) string {
	if allowed == "" {
		return ""
	}
	return "; allowed: " + allowed
}

func unknownProperty(e *openapi3.SchemaError) (string, bool) {
	given, ok := e.Value.(map[string]any)
	if !ok || e.SchemaField != "properties" {
		return "", false
	}
	for _, name := range slices.Sorted(maps.Keys(given)) {
		if _, known := e.Schema.Properties[name]; !known {
			return name, true
		}
	}
	return "", false
}

// allowedBy says in words what a schema lets through.
func allowedBy(schema *openapi3.Schema) string {
	if schema == nil {
		return ""
	}
	var parts []string
	switch {
	case len(schema.Enum) > 0:
		for _, v := range schema.Enum {
			parts = append(parts, fmt.Sprint(v))
		}
		return strings.Join(parts, ", ")
	case len(schema.Properties) > 0:
		return "a JSON object with " + strings.Join(slices.Sorted(maps.Keys(schema.Properties)), ", ")
	case schema.Type != nil:
		parts = append(parts, strings.Join(schema.Type.Slice(), " or "))
	}
	if schema.Format != "" && schema.Format != "int64" {
		parts = append(parts, "a "+schema.Format)
	}
	if schema.Min != nil {
		parts = append(parts, fmt.Sprintf("at least %g", *schema.Min))
	}
	if schema.Max != nil {
		parts = append(parts, fmt.Sprintf("at most %g", *schema.Max))
	}
	if schema.MinLength > 0 {
		parts = append(parts, fmt.Sprintf("at least %d characters", schema.MinLength))
	}
	if schema.MaxLength != nil {
		parts = append(parts, fmt.Sprintf("at most %d characters", *schema.MaxLength))
	}
	if schema.Pattern != "" {
		parts = append(parts, "of the form "+schema.Pattern)
	}
	return strings.Join(parts, ", ")
}
