package backup

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"

	"controld/internal/api/gen"
)

func (c commands) orphans(w http.ResponseWriter, r *http.Request) {
	var body gen.OrphansRequest
	if err := json.NewDecoder(r.Body).Decode(&body); err != nil && !errors.Is(err, io.EOF) {
		c.kit.Fail(w, r, err)
		return
	}
	apply := !gen.Value(body.DryRun)
	found, err := c.b.Orphans(r.Context(), apply, gen.Value(body.Keys))
	if err != nil {
		c.kit.Fail(w, r, err)
		return
	}
	answer := gen.Orphans{Applied: apply, Records: []gen.Orphan{}}
	for _, o := range found {
		answer.Records = append(answer.Records, gen.Orphan{
			Key: o.Key, Why: o.Why, Fecha: gen.Optional(o.Entry["fecha"]), TipoBackup: gen.Optional(o.Entry["tipo_backup"]),
			MaestroUsado: gen.Optional(o.Entry["maestro_usado"]), Label: gen.Optional(o.Entry[fieldLabel]),
			DireccionAlmacenamiento: gen.Optional(o.Entry["direccion_almacenamiento"]),
		})
	}
	c.kit.JSON(w, http.StatusOK, answer)
}

func catalogue(r Recorded) gen.Catalogue {
	g := gen.Catalogue{
		State: gen.CatalogueState(r.State()), Records: r.Records, Detail: gen.Optional(r.Detail), WrittenAt: gen.Optional(r.At),
		Version: gen.Optional(r.Version),
	}
	if r.Version != "" {
		g.AppendOnly = &r.Durable
	}
	return g
}
