package api

import (
	"context"
	"slices"

	"gssproxyd/keystore"
)

// AliasRequest gives an entry other names of its account, and takes some away.
type AliasRequest struct {
	Principal string   `json:"principal"`
	Add       []string `json:"add,omitempty"`
	Drop      []string `json:"drop,omitempty"`
}

// alias changes the aliases of an entry: who asks has to have the right to each name.
func (s *Server) alias(ctx context.Context, a *administrator, r *AliasRequest) (*Marked, error) {
	if len(r.Add)+len(r.Drop) == 0 {
		return nil, badRequest("add or drop is expected")
	}
	if err := a.mayAll(slices.Concat(r.Add, r.Drop)); err != nil {
		return nil, err
	}
	return s.change(ctx, a, r.Principal, "alias", func(e *keystore.Entry) error {
		for _, name := range r.Drop {
			i := slices.Index(e.Aliases, name)
			if i < 0 {
				return badRequest("%s is no alias of %s", name, r.Principal)
			}
			e.Aliases = slices.Delete(e.Aliases, i, i+1)
		}
		e.Aliases = append(e.Aliases, r.Add...)
		return nil
	})
}

// mayAll is may for each of the names, which have to be of principals.
func (a *administrator) mayAll(names []string) error {
	for _, name := range names {
		if err := checkPrincipal(name); err != nil {
			return err
		}
		if err := a.may(name); err != nil {
			return err
		}
	}
	return nil
}
