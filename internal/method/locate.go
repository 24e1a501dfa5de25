package method

import "strconv"

// A place is an object within a value, as the last step of the way there.
type place struct {
	above *place // nil at the top
	token string // name or index
	depth int    // number of steps
}

func (p *place) tokens() []string {
	tokens := make([]string, p.depth)
	for ; p.above != nil; p = p.above {
		tokens[p.depth-1] = p.token
	}
	return tokens
}

// places finds the object that holds a name at a depth. The entry is nil when
// there are several.
type places map[placeKey]*place

type placeKey struct {
	name  string
	depth int
}

// locate makes the places of a value.
//
// It exists for errors of propertyNames alone: where such an error occurred,
// the library remembers in a slice that it goes on to use for the places that
// it visits next, so that only its length can be relied on
// (github.com/santhosh-tekuri/jsonschema/pull/269, open as of v6.0.3).
func locate(value any) places {
	found := places{}
	found.walk(value, &place{})
	return found
}

func (p places) walk(value any, at *place) {
	switch v := value.(type) {
	case map[string]any:
		for name, inner := range v {
			key := placeKey{name, at.depth}
			if _, several := p[key]; several {
				p[key] = nil
			} else {
				p[key] = at
			}
			p.walk(inner, &place{at, name, at.depth + 1})
		}
	case []any:
		for i, inner := range v {
			p.walk(inner, &place{at, strconv.Itoa(i), at.depth + 1})
		}
	}
}
