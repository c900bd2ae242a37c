package report

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// Table is a table of text; the first column names the row.
type Table struct {
	Header []string
	Rows   [][]string
}

// WriteText writes the table in columns for a terminal.
func (t Table) WriteText(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	for _, row := range append([][]string{t.Header}, t.Rows...) {
		if _, err := fmt.Fprintln(tw, strings.Join(row, "\t")); err != nil {
			return err
		}
	}
	return tw.Flush()
}

// WriteMarkdown writes the table as GitHub's Markdown, figures to the right.
func (t Table) WriteMarkdown(w io.Writer) error {
	rule := make([]string, len(t.Header))
	for i := range rule {
		rule[i] = "---:"
		if i == 0 {
			rule[i] = "---"
		}
	}
	for _, row := range append([][]string{t.Header, rule}, t.Rows...) {
		if _, err := fmt.Fprintf(w, "| %s |\n", strings.Join(row, " | ")); err != nil {
			return err
		}
	}
	return nil
}
