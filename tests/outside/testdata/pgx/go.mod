// What the program in docs/go.md uses of pgx, as pgx 5.13 declares it: the real one, with what it takes, would be the largest
// dependency of a test.
module github.com/jackc/pgx/v5

go 1.26.0
