// Code and tables that scroll sideways are reached by the keyboard; the search dialog has a name.
document$.subscribe(() => {
  for (const box of document.querySelectorAll('pre > code, .md-typeset__scrollwrap, .md-typeset__table')) {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
  }
  document.querySelector('.md-search')?.setAttribute('aria-label', 'Search');
});
