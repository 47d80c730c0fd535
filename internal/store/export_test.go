package store

// SQL is the text of the query and its arguments, for the test of its plan.
func (q EventQuery) SQL() (string, []any) { return q.sql() }
