package main

import (
	"bufio"
	"errors"
	"fmt"
	"strings"
)

// errKept is the error of somebody who was asked and did not say yes.
var errKept = errors.New("nothing was removed (--yes removes without asking)")

// confirmed asks a question whose answer has to be y or yes.
func (c *cli) confirmed(question string) bool {
	answer, err := c.ask(question + " [y/N] ")
	return err == nil && (strings.EqualFold(answer, "y") || strings.EqualFold(answer, "yes"))
}

// ask asks a question on stderr and reads a line.
func (c *cli) ask(question string) (string, error) {
	fmt.Fprint(c.stderr, question)
	if c.answers == nil {
		c.answers = bufio.NewReader(c.stdin)
	}
	line, err := c.answers.ReadString('\n')
	if err != nil {
		fmt.Fprintln(c.stderr)
	}
	if err != nil && line == "" {
		return "", fmt.Errorf("no answer: %w", err)
	}
	return strings.TrimSpace(line), nil
}
