package gen

// Optional is v for a field that may be missing: a zero value is left out.
func Optional[T comparable](v T) *T {
	var zero T
	if v == zero {
		return nil
	}
	return &v
}

// Value is what such a field holds; the zero value where it is missing.
func Value[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}
