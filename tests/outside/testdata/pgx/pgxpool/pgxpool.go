// Package pgxpool has the declarations of pgx's package of that name that docs/go.md uses.
package pgxpool

import "context"

// Pool is no pool.
type Pool struct{}

// Row has the method of pgx.Row.
type Row interface{ Scan(dest ...any) error }

// New returns no pool.
func New(context.Context, string) (*Pool, error) { return nil, nil }

// Close does nothing.
func (*Pool) Close() {}

// QueryRow returns no row.
func (*Pool) QueryRow(context.Context, string, ...any) Row { return nil }
